"""Where everything meets: the daemon, its services, its doors to users, and the simulator."""
