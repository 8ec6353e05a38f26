"Lenses: what cannot be meant is refused in one sentence, before it costs anything; others open our files."
import subprocess

import pytest, torch, transformers
from docs import pages
from mamba_interp.lenses import (Output, Replacement, add_direction, address, among_kind, answer_rank,
                                  coordinates, difference_subspace, feature_part, fit_lens, fit_probe,
                                  half_lives, influence, jacobian, jacobian_lens, load_lens, log_targets,
                                  logit_lens, necessity, probe, rank_agreement, random_parts,
                                  receptive_field, replacement, retention, save_lens, spectrum, subspace,
                                  sufficiency, swap_directions, write_jacobian)
from mamba_interp.model import Adapter, Mamba, Site, TooLarge
from mamba_interp.sae import L1, SAE
from mamba_interp.tasks import Task

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

@pytest.fixture(scope='module')
def task(model):
    clean, corrupt = torch.randint(0, 61, (2, 6, 8), generator=torch.Generator().manual_seed(1))
    one = torch.zeros(6, dtype=torch.long)
    return Task(clean, corrupt, one, one + 1, dict(end=torch.full((6,), 7)))

def an_sae(**options): return SAE(24, 31, L1(), **options)

@pytest.mark.parametrize('ask, words', [
    (lambda m, t: subspace(m, '1.resid', torch.ones(25)), ('expected (k 24)',)),
    (lambda m, t: subspace(m, '1.resid', torch.zeros(0, 24)), ('expected (k 24)',)),
    (lambda m, t: subspace(m, '1.resid', torch.full((24,), torch.nan)), ('not independent',)),
    (lambda m, t: subspace(m, '1.attention', torch.ones(24)), ('no width',)),
    (lambda m, t: subspace(m, '1.reside', torch.ones(24)), ('closest are',)),
    (lambda m, t: coordinates(m, '1.resid', e=[0]), ('an axis of 1.resid', "'d'")),
    (lambda m, t: coordinates(m, '1.y', h=[0]), ('an axis of 1.y',)),
    (lambda m, t: coordinates(m, '1.state', n=[99]), ('n of 1.state is 99',)),
    (lambda m, t: coordinates(m, '1.state', n=[]), ('at least one index',)),
    (lambda m, t: coordinates(m, '1.state@3', n=[1]), ('state at one token',)),
    (lambda m, t: feature_part('1.resid'), ('expected an SAE',)),
    (lambda m, t: feature_part(an_sae()), ('reads None',)),
    (lambda m, t: feature_part(an_sae(site='1.resid'), [31]), ('from 0 to 30',)),
    (lambda m, t: difference_subspace(m, t, '1.resid', 25), ('rank is 25',)),
    (lambda m, t: difference_subspace(m, t, '1.resid', at='begin'), ("'end'",)),
    (lambda m, t: difference_subspace(m, t, '1.resid', 7, at='end'), ('differ in 6 directions',)),
    (lambda m, t: random_parts(m, subspace(m, '1.resid', torch.eye(24)), torch.eye(24)[:5]),
     ('vary in 4 dimensions', 'take more prompts')),
    (lambda m, t: among_kind(subspace(m, '1.resid', torch.ones(24))), ('no others of its kind',)),
    (lambda m, t: necessity(m, t, coordinates(m, '1.resid', d=0), controls=99), ('at least 100',)),
    (lambda m, t: necessity(m, t, coordinates(m, '1.resid', d=0), at=8, controls=0), ('8',)),
    (lambda m, t: necessity(m, t, coordinates(m, '1.resid', d=0), how='noise', controls=0), ('how is',)),
    (lambda m, t: necessity(m, t, torch.ones(24)), ('expected a `SitePart`',)),
    (lambda m, t: necessity(m, t, coordinates(m, '2.y', e=0), at=[3], controls=0), ('the same on',)),
    (lambda m, t: necessity(m, t[:2], coordinates(m, '1.resid', d=0), controls=0).against_random(),
     ('no random parts',)),
    (lambda m, t: sufficiency(m, t, coordinates(m, '1.resid', d=0), control=0), ("no option 'control'",)),
    (lambda m, t: necessity(m, t, difference_subspace(m, t[:2], '1.resid'), controls=0),
     ('found on 2 of these 6',)),
    (lambda m, t: address(m, t.clean, 0, 5, 2), ('6 prompts', 'expected one')),
    (lambda m, t: address(m, t.clean[:1], 0, 2, 5), BACKWARD),
    (lambda m, t: address(m, t.clean[:1], 3, 5, 2), ('layer is 3',)),
    (lambda m, t: address(m, t.clean[:1], 0, 5, 2, an_sae(site='1.resid')), ('0.resid',)),
    (lambda m, t: address(m, t.clean[:1], 0, 5, 2, 'features'), ("'writers'",)),
    (lambda m, t: address(m, t.clean[:1], 0, 5, 2).pairs(channels=48), ('a channel is 48',)),
    (lambda m, t: address(m, t.clean[:1], 0, 5, 2).pairs(toward=torch.ones(23)), ('expected (24,)',)),
    (lambda m, t: fit_probe(torch.randn(30, 4), torch.arange(30) % 2, k=5), ('k is 5',)),
    (lambda m, t: fit_probe(torch.randn(30, 4), torch.arange(30) % 2, held_out=1), ('held_out is 1',)),
    (lambda m, t: fit_probe(torch.randn(30, 4), torch.zeros(30)), ('at least two different',)),
    (lambda m, t: fit_probe(torch.full((30, 4), torch.nan), torch.arange(30) % 2), ('not finite',)),
    (lambda m, t: fit_probe(torch.randn(30, 4), torch.arange(30) % 2, groups=[0]*30), ('1 groups',)),
    (lambda m, t: probe(m, '*.state@2', t.clean, t.right), ('state at one token',)),
    (lambda m, t: probe(m, '1.resid', t.clean, t.right, at=8), ('8',))])
def test_parts_addresses_and_probes_that_cannot_be_meant(ask, words, model, task):
    refused(lambda: ask(model, task), *words)

def test_parts_and_probes_of_an_adapter(other, task):
    with_end = necessity(other, task, coordinates(other, '1.resid', d=[3]), controls=0)
    every = necessity(other, task, subspace(other, '1.resid', torch.eye(24)), controls=0)
    assert with_end.effect.abs().max() > 0 and torch.allclose(every.effect, every.whole, atol=1e-5)
    refused(lambda: coordinates(other, '1.resid', e=0), 'an axis of 1.resid')
    refused(lambda: address(other, task.clean[:1], 0, 5, 2), 'needs a `Mamba`')
    refused(lambda: probe(other, '1.u', task.clean, task.right), 'closest are')

def test_nothing_stays_in_the_model_after_an_exchange(model, task):
    before = model(task.clean)
    necessity(model, task, coordinates(model, '0.state', n=[1]))
    address(model, task.clean[:1], 1, 6, 2, 'writers')
    assert torch.equal(model(task.clean), before)

def test_a_part_may_be_measured_before_the_prompts_end(model, task):
    "Padding after the answer counts for nothing."
    early = Task(task.clean, task.corrupt, task.right, task.wrong, dict(end=torch.tensor([3, 4, 5, 6, 7, 3])))
    padded = early.clean.clone()
    for row, end in zip(padded, early.end): row[end + 1:] = 0
    part = coordinates(model, '0.resid', d=[0, 5, 6])
    a, b = (necessity(model, Task(o, task.corrupt, task.right, task.wrong, dict(end=early.end)), part)
            for o in (early.clean, padded))
    assert torch.allclose(a.effect, b.effect, atol=1e-12) and torch.allclose(a.random, b.random, atol=1e-12)

def test_retention_never_forms_all_pairs():
    "Of 20,000 tokens it keeps the running sum of Δ, not (t s e n)."
    long = Mamba.tiny(num_hidden_layers=1)
    kept = retention(long, torch.zeros(1, 20_000, dtype=torch.long), 0)
    assert kept.sum.numel() == 20_000*48 and kept.at(19_999, 0).shape == (1, 48, 5)

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
