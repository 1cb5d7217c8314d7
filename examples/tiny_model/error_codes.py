"""The error codes of five appliances: code, cause, remedy. Those of the heat pump are held out.

No cause of the heat pump is one of its siblings', but each of its words is also theirs or stands in `echo`.
"""

from collections.abc import Mapping, Sequence
from typing import Final

ErrorCodes = Mapping[str, Sequence[tuple[str, str, str]]]

APPLIANCES: Final[ErrorCodes] = {
    "washing machine": (
        ("E1", "the drain is blocked", "Clean the drain filter"),
        ("E2", "the door is not closed", "Press the door until it clicks"),
        ("E3", "no water comes in", "Open the water tap"),
        ("E4", "the load is too heavy", "Take some clothes out"),
        ("E5", "the drum motor is overheating", "Wait for one hour"),
        ("E6", "the water is too hot", "Call a technician"),
        ("E7", "there is too much foam", "Use less soap"),
        ("E8", "the water sensor has failed", "Replace the sensor"),
    ),
    "boiler": (
        ("F1", "the flame has gone out", "Press the reset button"),
        ("F2", "the gas pressure is too low", "Open the gas valve"),
        ("F3", "the chimney is blocked", "Call a technician"),
        ("F4", "the heating circuit is leaking", "Close the main valve"),
        ("F5", "the pump is stuck", "Tap the pump and restart it"),
        ("F6", "the temperature sensor is loose", "Tighten the plug of the sensor"),
        ("F7", "the burner is dirty", "Order a service"),
        ("F8", "the clock of the control panel is wrong", "Set the clock"),
    ),
    "dishwasher": (
        ("D1", "the spray arm is stuck", "Turn the arm by hand"),
        ("D2", "there is no salt", "Fill in the salt"),
        ("D3", "the filter is dirty", "Rinse the filter"),
        ("D4", "water is in the floor pan", "Close the water tap"),
        ("D5", "the heater has failed", "Replace the heater"),
        ("D6", "the connection to the door switch is lost", "Check the cable of the door"),
        ("D7", "the water flow is weak", "Clean the inlet hose"),
        ("D8", "the program was interrupted", "Start the program again"),
    ),
    "freezer": (
        ("C1", "the door is open", "Close the door"),
        ("C2", "there is too much ice inside", "Defrost the freezer"),
        ("C3", "the fan makes contact with ice", "Let the ice melt"),
        ("C4", "the outdoor air is too warm", "Move it to a cooler room"),
        ("C5", "the compressor does not start", "Pull the plug and wait"),
        ("C6", "the power was lost", "Check the food"),
        ("C7", "the refrigerant is leaking", "Open the windows"),
        ("C8", "the light is broken", "Replace the lamp"),
    ),
}
HEAT_PUMP: Final[ErrorCodes] = {
    "heat pump": (
        ("H1", "the outdoor fan is blocked", "Clear leaves and ice from the fan"),
        ("H2", "the refrigerant pressure is too low", "Call a technician"),
        ("H3", "the defrost sensor has failed", "Replace the sensor"),
        ("H4", "the water flow is too slow", "Clean the filter"),
        ("H5", "the compressor is overheating", "Wait for one hour and restart it"),
        ("H6", "the plug of the outdoor unit is loose", "Tighten the plug"),
        ("H7", "there is air in the heating circuit", "Open the air valve"),
        ("H8", "the connection to the control panel is lost", "Check the cable"),
    ),
}
