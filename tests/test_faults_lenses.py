"Lenses: what cannot be meant is refused in one sentence, before it costs anything; others open our files."
import subprocess

import pytest, torch, transformers
from docs import pages
from mamba_interp.lenses import (Output, Replacement, add_direction, answer_rank, fit_lens, half_lives,
                                  influence, jacobian, jacobian_lens, load_lens, log_targets, logit_lens,
                                  rank_agreement, receptive_field, replacement, retention, save_lens,
                                  spectrum, swap_directions, write_jacobian)
from mamba_interp.model import Adapter, Mamba, Site, TooLarge

def refused(f, *words, kinds=(ValueError, OSError)):
    "The sentence with which `f` is refused: one line, with all of `words`."
    with pytest.raises(kinds) as e: f()
    said = str(e.value)
    assert '\n' not in said and all(o in said for o in words), said
    return said

@pytest.fixture(scope='module')
def model(): return Mamba.tiny().double().requires_grad_(False)

@pytest.fixture(scope='module')
def other():
    config = transformers.MambaConfig(vocab_size=61, hidden_size=24, state_size=5, num_hidden_layers=2)
    return Adapter(transformers.MambaForCausalLM(config).eval())

@pytest.fixture(scope='module')
def tokens(): return torch.randint(0, 61, (2, 8), generator=torch.Generator().manual_seed(0))

BACKWARD = 'target, token 2', 'source, token 5', 'nothing flows back'

@pytest.mark.parametrize('ask', [
    lambda m, t: retention(m, t, 0).at(2, 5), lambda m, t: write_jacobian(m, t, 0, 2, 5),
    lambda m, t: jacobian(m, t, 'logits', 2, '1.resid', 5),
    lambda m, t: spectrum(m, t, '2.state', 2, '1.resid', 5)])
def test_a_target_before_its_source(ask, model, tokens): refused(lambda: ask(model, tokens), *BACKWARD)

@pytest.mark.parametrize('ask', [
    lambda m, t: retention(m, t, 0).at(8, 0), lambda m, t: write_jacobian(m, t, 0, 8, 0),
    lambda m, t: influence(m, t, '1.state', [8]), lambda m, t: replacement(m, t, [8]),
    lambda m, t: logit_lens(m, t, at=8)])
def test_a_state_beyond_its_tokens(ask, model, tokens): refused(lambda: ask(model, tokens), '8')

@pytest.mark.parametrize('target', (True, 1.5, 'end', None, [1, 2]))
def test_an_odd_target(target, model, tokens):
    refused(lambda: retention(model, tokens, 0).at(target, 0))
    refused(lambda: write_jacobian(model, tokens, 0, target, 0))

def test_a_model_without_gradients(tokens):
    with torch.inference_mode(): frozen = Mamba.tiny()
    refused(lambda: influence(frozen, tokens), 'inference_mode', 'load the model outside')
    whole = Mamba.tiny()
    whole.layers[0].A_log = torch.nn.Parameter(torch.ones(48, 5, dtype=torch.int8), requires_grad=False)
    refused(lambda: influence(whole, tokens), 'torch.int8', 'quantised')

def test_a_model_that_cuts_the_gradient(model, tokens):
    cut = lambda logits: logits[:, 0].detach()
    refused(lambda: influence(model, tokens, cut), 'passes no gradient')

def test_gradients_pass_whatever_the_caller_has_switched_off(model, tokens):
    plain = influence(model, tokens, probes=2).squares
    with torch.no_grad(): assert torch.equal(influence(model, tokens, probes=2).squares, plain)
    with torch.inference_mode(): assert torch.equal(influence(model, tokens.clone(), probes=2).squares, plain)

def test_nothing_stays_in_the_model(model, tokens):
    before = model(tokens)
    influence(model, tokens, probes=2)
    fit_lens(model, tokens, skip=2, rule='secant')
    spectrum(model, tokens, 'logits', 5, '1.resid', 2, 2)
    assert torch.equal(model(tokens), before)
    assert not any(o.requires_grad or o.grad is not None for o in model.parameters())

def test_an_adapter_has_sites_around_the_blocks_only(other, tokens):
    found = influence(other, tokens, targets=[-1], probes=4)
    assert found.squares.shape == (4, 2, 2, 1, 8) and found.squared.min() > 0
    refused(lambda: influence(other, tokens, sources='*.u'), 'closest are')
    refused(lambda: influence(other, tokens, '1.state', [-1]), 'closest are')
    for ask in (lambda: retention(other, tokens, 0), lambda: half_lives(other, tokens),
                lambda: write_jacobian(other, tokens, 0, 3, 1),
                lambda: spectrum(other, tokens, 'logits', 3, '1.resid', 1),
                lambda: fit_lens(other, tokens, skip=2)):
        refused(ask, 'needs a `Mamba`')

def test_an_adapter_of_a_mamba_agrees(tokens, tmp_path):
    mine = Mamba.tiny(num_hidden_layers=2)
    mine.save(tmp_path)
    a, b = (influence(o, tokens, targets=[5], probes=3).squared for o in (mine, Adapter(tmp_path)))
    assert torch.allclose(a, b, rtol=1e-3)

@pytest.mark.parametrize('kind', (1, 2))
@pytest.mark.parametrize('batch', (1, 3, 64))
def test_rows_in_a_pass_change_nothing(kind, batch, tokens):
    m = Mamba.tiny(kind=kind).double().requires_grad_(False)
    a, b = (influence(m, tokens, targets=[4], probes=5, batch=o).squares for o in (batch, 7))
    assert torch.allclose(a, b, rtol=1e-10)

def test_too_few_prompts(model, tokens):
    effect = replacement(model, tokens, [5], times=2)
    refused(lambda: rank_agreement(effect.size, effect), '2 prompts are too few', 'at least 5')
    refused(lambda: fit_lens(model, tokens[:1], skip=2, rule='secant'), 'at least two')
    refused(lambda: fit_lens(model, tokens[:, :3], skip=2), 'at least 4')

def test_a_target_that_is_padding(model, tokens):
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[1, :3] = False
    refused(lambda: influence(model, tokens, targets=[2], attention_mask=mask),
            'token 2 is padding in prompt 1')

def test_memory_is_told_before_it_is_taken():
    wide = Mamba.tiny(hidden_size=1024, num_hidden_layers=1)
    many, one = torch.zeros(4000, 2, dtype=torch.long), torch.zeros(1, 60, dtype=torch.long)
    for ask in (lambda: write_jacobian(wide, many, 0, 1, 0), lambda: influence(wide, one, probes=10**9),
                lambda: fit_lens(wide, one, lags=10**6)):
        refused(ask, 'bytes', kinds=TooLarge)

@pytest.mark.parametrize('ask, words', [
    (lambda m, t: influence(m, t, '*.resid'), ('one site',)),
    (lambda m, t: influence(m, t, '1.state@3'), ('one site',)),
    (lambda m, t: influence(m, t, targets=[]), ('targets is empty',)),
    (lambda m, t: influence(m, t, probes=0), ('probes is 0',)),
    (lambda m, t: influence(m, t, sources='1.attention'), ('no vector for each token',)),
    (lambda m, t: influence(m, t, batch=0), ('batch is 0',)),
    (lambda m, t: Output(m, 3), ()),
    (lambda m, t: logit_lens(m, t, '*.u'), ('no part of the residual stream',)),
    (lambda m, t: answer_rank(m(t, at=-1), [61, 3]), ('below 61',)),
    (lambda m, t: answer_rank(m(t, at=-1), [3]), ('one token id per prompt',)),
    (lambda m, t: fit_lens(m, t, skip=2, rule='relevance'), ('rule is',)),
    (lambda m, t: fit_lens(m, t, skip=-1), ('skip is -1',)),
    (lambda m, t: receptive_field(m), ('hand over what',)),
    (lambda m, t: log_targets(0), ('length is 0',)),
    (lambda m, t: replacement(m, t, [3], times=0), ('times is 0',)),
    (lambda m, t: replacement(m, t, [3], pool=[]), ('at least two',)),
    (lambda m, t: write_jacobian(m, t, 3, 1, 0), ('layer is 3',)),
    (lambda m, t: write_jacobian(m, t, 0, 1, 0, -1), ('lag is -1',)),
    (lambda m, t: spectrum(m, t, 'logits', 3, '1.resid', 1, 0), ('k is 0',)),
    (lambda m, t: add_direction(torch.ones(24), float('nan')), ('amount is nan',)),
    (lambda m, t: swap_directions(torch.zeros(2, 24)), ('not independent',)),
    (lambda m, t: swap_directions(torch.ones(24)), ())])
def test_what_cannot_be_meant(ask, words, model, tokens): refused(lambda: ask(model, tokens), *words)

def test_a_lens_of_another_model(model, tokens, tmp_path):
    file = save_lens(fit_lens(model, tokens, lags=2, skip=2), tmp_path/'folder'/'lens.pt')
    another = Mamba.tiny(seed=1).double()
    refused(lambda: load_lens(file, another), 'this model has weights')
    refused(lambda: jacobian_lens(another, tokens, load_lens(file)), 'this model has weights')
    refused(lambda: load_lens(tmp_path/'none.pt'))

def test_a_lens_that_holds_code_is_refused(tmp_path):
    torch.save(dict(J={0: transformers.MambaConfig()}, n_prompts=1, d_model=24), tmp_path/'bad.pt')
    refused(lambda: load_lens(tmp_path/'bad.pt'), 'cannot be read as a lens')

INTEROP = pages.root/'.venv-interop'/'bin'/'python'

@pytest.mark.skipif(not INTEROP.exists(), reason='no .venv-interop; make it with: make interop')
def test_transformerlens_opens_ours(model, tokens, tmp_path):
    lens = fit_lens(model, tokens, lags=2, skip=2)
    file = save_lens(lens, tmp_path/'lens.pt')
    code = f'''
import torch
from transformer_lens.tools.analysis import JacobianLens
lens = JacobianLens.load({str(file)!r})
assert lens.source_layers == [0, 1] and lens.n_prompts == 2 and lens.d_model == 24
torch.save(lens.jacobians, {str(tmp_path/'seen.pt')!r})
lens.save({str(tmp_path/'theirs.pt')!r}, dtype=torch.float32)'''
    env = dict(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1', HOME=str(tmp_path), PATH='/usr/bin:/bin')
    r = subprocess.run([INTEROP, '-c', code], capture_output=True, text=True, env=env)
    assert r.returncode == 0, r.stderr[-2000:]
    seen = torch.load(tmp_path/'seen.pt', weights_only=True)
    for l in (0, 1): assert torch.allclose(seen[l], lens.J[l + 1].float(), atol=1e-6)
    back = load_lens(tmp_path/'theirs.pt', model)
    assert torch.allclose(back.J, lens.J[1:].float(), atol=1e-6)
    assert back.sites == [Site('resid', 1), Site('resid', 2)]
