import pytest
import torch

from todm.bench.bundles.conformer import ConformerConfig, StreamingConformer, of_size
from todm.errors import ConfigError


def test_a_conformer_of_the_requested_size():
    for size in (300_000, 2_000_000, 20_000_000):
        config = of_size(size, joiner_dim=128, chunk=8)
        model = sum(p.numel() for p in StreamingConformer(config).parameters())
        assert model == config.num_params
        assert abs(model / size - 1) <= 0.05
    with pytest.raises(ConfigError, match="no Conformer"):
        of_size(20_000, joiner_dim=512, chunk=8)


def test_the_conformers_chunks_are_causal_and_carry_their_states():
    torch.manual_seed(0)
    config = ConformerConfig(d_model=16, num_blocks=2, joiner_dim=8, chunk=4, left=8, kernel=5)
    model = StreamingConformer(config).eval()
    x = torch.randn(1, 3 * 16, 80)
    start = [torch.zeros(1, 1, size) for size in model.state_sizes]

    def outputs(features):
        states, found = start, []
        for chunk in features.split(16, 1):
            out, *states = model(chunk, *states)
            found.append(out)
        return torch.cat(found, 1)

    with torch.no_grad():
        whole = outputs(x)
        changed = x.clone()
        changed[:, 32:] += 1
        later = outputs(changed)
        fresh = model(x[:, 16:32], *start)[0]
    assert torch.equal(whole[:, :8], later[:, :8])
    assert not torch.allclose(whole[:, 8:], later[:, 8:])
    assert not torch.allclose(whole[:, 4:8], fresh)  # what came before is in the states


def test_the_conformers_attention_is_softmax_over_cache_and_chunk():
    torch.manual_seed(1)
    config = ConformerConfig(d_model=8, num_blocks=1, joiner_dim=8, chunk=3, heads=2, left=4)
    block = StreamingConformer(config).blocks[0]
    x, cache = torch.randn(1, 3, 8), torch.randn(1, 2, 4, 8)
    with torch.no_grad():
        got, kept = block._attend(x, cache)
        query, key, value = block.qkv(x)[0].split(8, -1)
        keys, values = torch.cat([cache[0, 0], key]), torch.cat([cache[0, 1], value])
        rows = []
        for t in range(3):
            heads = []
            for h in (slice(0, 4), slice(4, 8)):
                weights = (keys[:, h] @ query[t, h] / 2).softmax(0)
                heads.append(weights @ values[:, h])
            rows.append(torch.cat(heads))
        expected = block.out(torch.stack(rows))
    assert torch.allclose(got[0], expected, atol=1e-6)
    assert torch.equal(kept[0, 0], keys[-4:])
