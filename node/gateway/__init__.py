"""The HTTP side of a node: what OpenAI's clients expect, the mesh's own API, and the admin socket.

`server.py` accepts connections, `guards.py` lets requests in, `app.py` composes the routes of `openai.py`,
`mesh_api.py` and `admin_api.py`; behind them is the node, through the ports of `ports.py`.
"""
