import torch


def test_every_patch_is_laid_out_over_its_own_pixels(make):
    model = make("segmentation").model
    images = torch.randn(2, 1, 12, 16)
    with torch.no_grad():
        logits = model(images)
        tokens = model.encoder.forward_features(images)[:, 1:]
    assert logits.shape == (2, 11, 12, 16)
    weight, bias = model.head.weight.double(), model.head.bias.double()
    for item in range(2):
        for y, x, c in ((0, 0, 0), (5, 9, 3), (11, 15, 10), (7, 2, 7)):
            token = tokens[item, (y // 4) * 4 + x // 4].double()
            row = c * 16 + (y % 4) * 4 + x % 4
            expected = weight[row] @ token + bias[row]
            torch.testing.assert_close(
                logits[item, c, y, x].double(), expected, rtol=1e-4, atol=1e-4
            )
