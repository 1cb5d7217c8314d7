"""The long answers: six stories with a place in them, and four explanations.

Each is 225 to 261 tokens of this model's tokenizer: a stream that can be watched, and broken.
"""

from typing import Final

DEFAULT_PLACE: Final = "Tilby"
PLACES: Final = (
    "Marnow", "Osten", "Velden", "Corran", "Dorsa", "Brenwick", "Lunde", "Salmar", "Norvik", "Pellin", "Harrow",
)  # fmt: skip

STORIES: Final = {
    "lighthouse": (
        "On the cliffs above {place} stands a white lighthouse. For forty years its keeper climbed the "
        "stairs each evening and lit the lamp. One winter night a storm tore the cable, and the lamp went "
        "dark. A fishing boat was still out at sea. The keeper carried every lantern of the house up the "
        "stairs and set them in the window. The people of {place} saw the small lights and understood. They "
        "brought their own until the whole coast was shining. At dawn the boat came home, and nobody was "
        "missing. Since that night each house in {place} keeps a lantern by the door."
    ),
    "clockmaker": (
        "In a narrow street of {place} lived a clockmaker who could repair everything except the clock of "
        "the town hall. Every morning the clockmaker climbed the tower, cleaned one wheel and went home "
        "again. The children laughed, because the hands never moved. After three years the last wheel was "
        "clean, but the clock was still silent. Then a girl found a bird's nest behind the bell. They "
        "waited until the young birds had flown. At noon the bell of {place} rang for the first time, and "
        "the clockmaker set every watch in the street by it."
    ),
    "baker": (
        "The baker of {place} rose at three each morning and worked alone while the town was asleep. One "
        "day the old oven broke, and there was no money for a new one. The baker wrote on the door that the "
        "shop was closed. Before evening a mason came with stones, a smith with an iron door, and the "
        "children with clay from the river. They built all night. When the sun rose over {place} the first "
        "bread came out of the new oven, a little crooked and a little burnt. It was shared among all of "
        "them, and they agreed that they had never eaten a better one."
    ),
    "ferry": (
        "Long before the bridge was built, a ferry crossed the river at {place}. Its captain took no money "
        "from those who had none. When the bridge was opened, people forgot the ferry, and it lay in the "
        "reeds for ten years. Then a flood came in spring and carried the bridge away. The doctor stood on "
        "one bank, and the sick child on the other. The old captain pushed the ferry into the brown water "
        "and brought the doctor over in the dark. The bridge of {place} was built again, but every Sunday "
        "the ferry still runs, and the whole town pays for its paint."
    ),
    "library": (
        "The library of {place} had only one hundred books, and everyone had read them all. So the "
        "librarian laid an empty book on the table and asked each visitor to write one page. The farmer "
        "wrote about the weather, the teacher about the stars, and a boy drew a map of the best trees for "
        "climbing. After a year the book was full, and people came from other towns to read it. Today the "
        "library of {place} has a second room, with a long shelf of such books. The first one is worn and "
        "dirty, and it is the one that nobody is allowed to miss."
    ),
    "garden": (
        "Behind the old station of {place} lay a piece of ground where nothing wanted to grow. A widow "
        "bought it for the price of a hat. She carried the stones away, one bucket each day, and mixed the "
        "dust with leaves from the park. In the first summer a single bean came up, and the neighbours "
        "smiled. In the second summer there were beans and flowers. In the third she opened the gate and "
        "gave everybody a key. Now the trains stop in {place} a little longer than they need to, and "
        "sometimes there is a tomato waiting on the wall."
    ),
}

EXPLANATIONS: Final = {
    "repair a bicycle tyre": (
        "First turn the bicycle upside down and take the wheel out. Let the air out and lift one side of "
        "the tyre over the rim with two levers. Pull out the tube, pump it up and hold it under water. "
        "Where bubbles rise, there is the hole. Dry the tube and make it rough around the hole. Spread a "
        "thin layer of glue, wait five minutes, and press the patch on it firmly. Before you put the tube "
        "back, feel along the inside of the tyre for glass or a thorn. Pump it up slowly, put the wheel "
        "back, and test the brakes."
    ),
    "bake bread": (
        "Mix five hundred grams of flour with a spoon of salt and a packet of yeast. Add three hundred "
        "grams of warm water and stir until no dry flour is left. Knead the dough for ten minutes, until it "
        "is smooth and no longer sticks to the table. Cover it with a cloth and let it rest for one hour in "
        "a warm place. Fold it twice, shape it into a round loaf and let it rise again while the oven gets "
        "hot. Cut a cross in the top and bake the bread for forty minutes. It is ready when it sounds "
        "hollow as you knock on the bottom. Let it cool before you cut it."
    ),
    "plant a tree": (
        "Choose a place with enough light and room, because a tree is hard to move later. Dig a hole twice "
        "as wide as the roots and just as deep. Loosen the ground at the bottom and set the tree in the "
        "middle, so that it stands as deep as it stood before. Drive a strong stake into the ground beside "
        "it. Fill the hole with earth, shake the tree a little so that no air is left between the roots. "
        "Tie the tree to the stake with a soft band. Give it two buckets of water now, and one bucket each "
        "week during the first summer."
    ),
    "make a pot of tea": (
        "Fill the kettle with fresh cold water, because water that has boiled before tastes flat. While it "
        "heats, warm the pot with a little hot water and pour that away. Put in one spoon of tea leaves for "
        "each cup and one more for the pot. Black tea wants boiling water, but green tea turns bitter, so "
        "let the water cool for three minutes first. Pour the water over the leaves and close the lid. Wait "
        "four minutes for black tea and two for green. Add milk or lemon if you like, but never both, and "
        "drink it while it is hot."
    ),
}
