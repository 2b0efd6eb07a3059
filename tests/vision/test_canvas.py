import numpy as np

from todm.vision.canvas import INK, compose


def test_a_pixel_is_of_the_digit_whose_ink_it_is():
    images = np.zeros((3, 4, 5), dtype=np.uint8)
    images[0, 1, 1:4] = 250  # a bar, a column, and a digit too faint to be seen
    images[1, :, 2] = 200
    images[2] = INK - 1
    canvases, classes = compose(images, np.array([0, 1, 2]), num=50, size=(12, 13), seed=4)
    assert canvases.shape == classes.shape == (50, 12, 13)
    assert set(np.unique(classes)) == {0, 1, 2}
    assert (canvases[classes == 1] == 250).all()
    # Where the two cross the later one is on top, and the brighter is seen.
    assert set(np.unique(canvases[classes == 2])) == {200, 250}
    assert (canvases[classes == 0] < INK).all()


def test_the_same_seed_gives_the_same():
    images = np.full((1, 3, 3), 255, dtype=np.uint8)
    one, two, other = (
        compose(images, np.zeros(1, int), num=4, size=(8, 8), seed=s)[1] for s in (1, 1, 2)
    )
    assert (one == two).all()
    assert (one != other).any()
    assert all(9 <= c.sum() <= 5 * 9 for c in one)
