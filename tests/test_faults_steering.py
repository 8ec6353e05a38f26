"Steering: what cannot be meant is refused in one sentence, and what would do nothing is said to do nothing."
import math, warnings

import numpy as np, pytest, torch

from mamba_interp import steering as st
from mamba_interp.model import Mamba, Site, record, steer

@pytest.fixture(scope='module')
def truth(): return st.planted_concept()

@pytest.fixture(scope='module')
def d(truth): return st.direction(truth.model, '1.resid', truth.task.clean, truth.task.corrupt)

def refused(f, *words):
    "The one sentence with which `f` is refused."
    with pytest.raises((ValueError, TypeError)) as e: f()
    said = str(e.value)
    assert '\n' not in said and len(said) < 500, said
    for o in words: assert o in said, (o, said)

# --- a direction ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('site, words', [
    ('1.resdi', ('closest are',)), ('9.resid', ('2.resid',)), ('1.state', ('no vector per token',)), ('1.attention', ('no vector per token',)),
    ('*.resid', ())])
def test_direction_at_no_such_site(truth, site, words):
    refused(lambda: st.direction(truth.model, site, truth.task.clean, truth.task.corrupt), *words)

def test_direction_without_a_difference(truth):
    refused(lambda: st.direction(truth.model, '1.resid', truth.task.clean, truth.task.clean), 'the two sides do not differ')
    refused(lambda: st.direction(truth.model, '1.resid', truth.task.clean[:1], truth.task.corrupt), 'two prompts on each side')
    refused(lambda: st.direction(truth.model, '1.resid', truth.task.clean, truth.task.corrupt[:5], how='pca'), 'takes pairs')
    refused(lambda: st.direction(truth.model, '1.resid', truth.task.clean, truth.task.corrupt, how='means'), "did you mean 'mean'?")
    refused(lambda: st.direction(truth.model, '1.resid', truth.task.clean, truth.task.corrupt, at=7), 'tokens 0 to 6')

def test_concept_that_is_not_there_is_said(truth):
    same = torch.randint(14, 61, (200, 7), generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match='where .5 is chance'): found = st.direction(truth.model, '1.resid', same[:100], same[100:])
    assert not found.found and 'no concept there' in repr(found)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        st.direction(truth.model, '1.resid', same[:100], same[100:], quiet=True)

def test_too_few_prompts_have_no_score(truth):
    few = st.direction(truth.model, '1.resid', truth.task.clean[:4], truth.task.corrupt[:4])
    assert math.isnan(few.auroc) and not few.found and 'AUROC' not in repr(few)

@pytest.mark.parametrize('vector, words', [(torch.ones(5), ('expected that of 1.resid, (24)',)), (torch.zeros(24), ('has no direction',)),
    (torch.full((24,), math.nan), ('has no direction',)), (torch.ones(1, 24), ('(1, 24)',))])
def test_vector_from_elsewhere(truth, vector, words):
    refused(lambda: st.as_direction(truth.model, '1.resid', vector, truth.task.clean), *words)

# --- an edit --------------------------------------------------------------------------------------------------------

def test_direction_of_another_width(truth, d):
    odd = st.Direction(Site('u', 1), d.vector, 1.)
    for taps in (st.add(odd), st.project_out(odd), st.set_to(odd, 1.)):
        refused(lambda: truth.model(truth.task.clean, taps), '24', '48')

@pytest.mark.parametrize('dose', [math.nan, math.inf, '1', None, True])
def test_dose_that_is_no_number(d, dose):
    refused(lambda: st.add(d, dose), 'dose')
    refused(lambda: st.set_to(d, dose), 'value')

def test_scale_refuses(truth):
    refused(lambda: st.scale('1.dt', None, -.5), 'Δ is a step size')
    refused(lambda: st.scale('1.dt', [], 2.), 'coordinates is empty')
    refused(lambda: truth.model(truth.task.clean, st.scale('1.dt', [3, 99], 2.)), 'no coordinate 99')
    refused(lambda: truth.model(truth.task.clean, st.scale('1.dt', [-1], 2.)), 'no coordinate -1')

def test_edit_that_changes_nothing(truth, d):
    model, clean = truth.model, truth.task.clean
    for taps in (st.add(d, 0.), st.scale('1.dt', None, 1.), st.write_state(1, torch.zeros(5), torch.ones(48), 3)):
        refused(lambda: st.change_at(model, clean, taps), 'changes nothing')

# --- a schedule -----------------------------------------------------------------------------------------------------

def test_schedule_refuses(truth, d):
    model, clean = truth.model, truth.task.clean
    refused(lambda: st.add(d, 1., 'generate'), "did you mean 'generated'?")
    for which in ([], [1.5], [None], None, {}): refused(lambda: st.Schedule(which))
    refused(lambda: model(clean, st.add(d, 1., 'generated')), 'reaches nothing')
    refused(lambda: model.generate(clean, 1, taps=st.add(d, 1., 'generated')), 'reaches nothing')
    refused(lambda: model.generate(clean, 3, taps=st.add(d, 1., st.Schedule(9))), 'tokens 0 to 8')

def test_tap_at_an_absolute_token_is_applied_once(truth, d):
    "At token 8 of a text, which a generation reads second, and nowhere else."
    model, clean, seen = truth.model, truth.task.clean[:2], []
    taps = st.add(d, 1., [8])
    old = taps[d.site].apply
    counted = {d.site: type(taps[d.site])('count', lambda x: seen.append(x.shape[1]) or old(x), [8])}
    model.generate(clean, 4, taps=counted)
    assert seen == [1]

# --- a state --------------------------------------------------------------------------------------------------------

def test_state_refuses(truth):
    model, clean, other = truth.model, truth.task.clean, truth.task.corrupt
    refused(lambda: model(clean, st.write_state(1, torch.ones(4), torch.ones(48), 3)), 'a key (5,)')
    refused(lambda: model(clean, st.write_state(1, torch.ones(5), torch.ones(47), 3)), 'a value is (48,)')
    refused(lambda: model(clean, st.write_state(1, torch.ones(5), torch.ones(48), 7)), 'tokens 0 to 6')
    refused(lambda: st.write_state(-1, torch.ones(5), torch.ones(48), 3), 'layer is -1')
    refused(lambda: st.move_state(model, other, 3, 2), 'from 0 to 2')
    refused(lambda: st.move_state(model, other, 1, 2, source_at=9), 'tokens 0 to 6')
    refused(lambda: st.persistence(model, clean, {}), 'one edit of a state')
    refused(lambda: st.persistence(model, clean, st.move_state(model, clean, 1, 2)), 'changes nothing')
    for share in ([], [[1, 2]], [1, math.nan]): refused(lambda: st.half_life(share), 'share')

def test_recorded_state_is_that_after_the_edit(truth):
    "Persistence would otherwise begin with nothing."
    taps = st.write_state(1, torch.ones(5), torch.ones(48), 3)
    plain, edited = (record(truth.model, truth.task.clean, '1.state', o)['1.state'] for o in (None, taps))
    torch.testing.assert_close(edited[:, 3] - plain[:, 3], torch.ones_like(plain[:, 3]))

# --- a curve --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('doses, words', [([], ('a list',)), ([1, 1], ('given twice',)), ([math.nan], ('not finite',)), (['a'], ('doses',)),
    ([1e308], ('a dose of 1e+308', 'NaN')), ([[1, 2]], ('a list',))])
def test_doses_that_cannot_be_meant(truth, d, doses, words):
    refused(lambda: st.dose_response(truth.model, d, doses, truth.task, controls=0), *words)

def test_dose_response_refuses(truth, d):
    model, task = truth.model, truth.task
    refused(lambda: st.dose_response(model, d, [1], task, which='corupt'), "did you mean 'corrupt'?")
    refused(lambda: st.dose_response(model, d, [1], task, at='ends'), "did you mean 'end'?")
    refused(lambda: st.dose_response(model, d, [1], task, at=7), '6')
    refused(lambda: st.dose_response(model, d, [1], task, text=task.clean[:, :1]), 'one token')
    refused(lambda: st.dose_response(model, st.Direction(Site('u', 1), d.vector, 1.), [1], task), 'width 24', '48')
    found = st.dose_response(model, d, [0, .2], task, controls=5)
    refused(lambda: found.against('isotropc'), "did you mean 'isotropic'?")
    refused(lambda: found.frontier(), 'hand a text')
    assert np.isnan(found.p_values()[0]) and found.p_values()[1] < .01
    priced = st.dose_response(model, d, [.2], task, text=task.clean[:6], controls=0)
    refused(lambda: priced.frontier(0.), 'the cheapest costs')

def test_dose_of_nothing_is_the_plain_run(truth, d):
    "Bit for bit, also where the run starts in the middle."
    found = st.dose_response(truth.model, d, [0.], truth.task, controls=0)
    assert not found.effects.any()
    whole = truth.model(truth.task.corrupt)
    assert torch.equal(truth.model(truth.task.corrupt, st.add(d, 0.)), whole)

# --- an evaluation --------------------------------------------------------------------------------------------------

def test_parts_share_no_prompt(truth):
    parts = st.three_parts(st.planted_concept(prompts=80).task)
    refused(lambda: st.evaluate_steering(truth.model, parts._replace(test=parts.train), '1.resid', [1], limit=math.inf), 'stand in train and in test')
    refused(lambda: st.evaluate_steering(truth.model, parts, '1.resid', [1]), 'needs a text')
    refused(lambda: st.evaluate_steering(truth.model, parts, '1.resid', [-.2], limit=math.inf), 'the right way')

@pytest.mark.parametrize('options, words', [(dict(train=.9, dev=.2), ('cannot be shared',)), (dict(train=0), ('train',)), (dict(by='template'), ('by',))])
def test_parts_refuse(truth, options, words): refused(lambda: st.three_parts(truth.task, **options), *words)

def test_side_effects_refuse(truth, d):
    model = truth.model
    refused(lambda: st.side_effects(model, truth.task.clean, st.add(d, 1e308)), 'a smaller dose')
    refused(lambda: st.behaviours_kept(model, dict(opposite=_turned(truth.task)), {}), 'nothing to keep')
    refused(lambda: st.repeated_share([[1, 2, 3]]), 'no run of 4')

def _turned(task):
    from dataclasses import replace
    return replace(task, right=task.wrong, wrong=task.right)

def test_controls_refuse(truth, d):
    refused(lambda: st.random_directions(torch.ones(4, 3), how='covariance'), 'do not vary')
    refused(lambda: st.random_directions(torch.ones(4, 3), 0), 'n is 0')
    refused(lambda: st.control_directions(truth.model, '2.resid', truth.task.clean, truth.task.corrupt, other=d), 'expected 2.resid')

def test_restart_refuses(truth):
    refused(lambda: st.Restart(truth.model, truth.task.clean, '1.resid', 7), 'tokens 0 to 6')
    refused(lambda: st.Restart(truth.model, truth.task.clean, '1.resid', 5, 2), 'begins only at')
    begun = st.Restart(truth.model, truth.task.clean, '2.resid', 3)
    refused(lambda: begun(steer('1.resid', [1.])), 'not visited')

# --- a feature ------------------------------------------------------------------------------------------------------

def coder(site, model, **more):
    from mamba_interp.sae import SAE, TopK
    width = next(iter(record(model, torch.zeros(1, 2, dtype=torch.long), site).values()))[0, 0].numel()
    return SAE(width, 40, TopK(5), site=site, **more).double().requires_grad_(False)

def test_feature_that_is_not_there(truth):
    from mamba_interp.features import Feature
    model, clean = truth.model, truth.task.clean
    sae = coder('1.block_out', model)
    for feature, words in ((40, 'from 0 to 39'), (-1, 'from 0 to 39'), (1.5, '1.5'), (Feature(Site('u', 1), 3), 'which reads 1.block_out')):
        refused(lambda: st.push_features(sae, {feature: 1.}), words)
        refused(lambda: st.feature_direction(model, sae, feature, clean), words)
        refused(lambda: st.When(sae, feature), words)
    refused(lambda: st.push_features('3.block_out', {3: 1.}), 'expected an SAE')
    refused(lambda: st.push_features(sae, {}), 'a dict from features')

def test_feature_that_does_nothing(truth):
    model, clean = truth.model, truth.task.clean
    sae = coder('1.block_out', model)
    refused(lambda: st.push_features(sae, {3: 0.}), 'changes nothing')
    refused(lambda: st.reach(model, clean, st.clamp_when(sae, {3: 2.}, st.When(sae, 3, 1e9))), 'changes nothing at any of')
    refused(lambda: st.push_features(sae, {3: math.nan}), 'feature 3')

def test_condition_that_cannot_be_meant(truth):
    model, clean = truth.model, truth.task.clean
    early, late = coder('0.block_out', model), coder('2.block_out', model)
    refused(lambda: st.When(early, 3, where='there'), "'here', 'before'")
    refused(lambda: st.When(early, 3, 2., 1.), 'larger `most`')
    refused(lambda: st.When(coder('1.state', model), 3), 'for all tokens at once')
    refused(lambda: st.clamp_when(early, {3: 1.}, []), 'at least one')
    refused(lambda: st.clamp_when(early, {3: 1.}, ['3.block_out']), 'expected a `When`')
    refused(lambda: model(clean, st.clamp_when(early, {5: 4.}, st.When(late, 3))), 'came to 0.block_out first')
    refused(lambda: model(clean, st.clamp_when(late, {5: 4.}, st.When(early, 3, where=7))), 'tokens 0 to 6')

def test_sae_of_another_width(truth):
    sae = coder('1.u', truth.model)
    sae.site = Site('resid', 1)
    refused(lambda: truth.model(truth.task.clean, st.push_features(sae, {3: 1.})), 'width 48', '24')

@pytest.mark.parametrize('at', [3, [3], 'last'])
def test_tap_of_a_state_takes_its_token_from_the_site(truth, at):
    "It is called once a token; a mask over tokens would fall on its channels."
    from mamba_interp.features import clamp
    from mamba_interp.model import chain
    model, clean = truth.model, truth.task.clean
    one = steer('1.state', torch.ones(5), at=st.Schedule(at) if isinstance(at, str) else at)
    for taps in (one, st.scale('1.state', [0], 2., at=at), chain(one, {'1.state': torch.neg}), {'1.state@3': one[Site('state', 1)]},
            clamp(coder('1.state', model), {3: 5.}, at=at) if not isinstance(at, str) else one):
        refused(lambda: model(clean, taps), 'name the token in the site')
        refused(lambda: model.generate(clean, 2, taps=taps), 'name the token in the site')
    moved = st.push_features(coder('1.state', model), {3: 5.}, at=at)
    before, after = (record(model, clean, '1.state', o)['1.state'] for o in (None, moved))
    changed = (before - after).abs().flatten(2).amax((0, 2)) > 0
    first = 6 if at == 'last' else 3
    assert changed.tolist() == [t >= first for t in range(7)]

# --- tokens of a text, whatever the architecture --------------------------------------------------------------------

@pytest.mark.parametrize('which', ['prompt', 'last', 'generated', 'all', [2, 8], -2])
def test_schedule_behind_an_adapter(which):
    "One run over the finished text, edited at the same tokens, predicts each token of it; a transformer has no state that could hide a slip."
    import transformers
    from mamba_interp.model import Adapter, Span
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2)
    model = Adapter(transformers.LlamaForCausalLM(config).double().eval())
    tokens, push = torch.randint(0, 61, (3, 6)), torch.randn(24).double()
    edit = lambda at: steer('1.resid', push, 5., at=at)
    text = model.generate(tokens, 5, taps=edit(st.Schedule(which)))
    where = [6 + o if o < 0 else o for o in st.Schedule(which).tokens(Span(0, 11, 6, 11))]
    with torch.no_grad(): again = model(text, edit(where))[:, 5:-1].argmax(-1)
    assert torch.equal(again, text[:, 6:])
    assert not torch.equal(text, model.generate(tokens, 5))

# --- a file for lm-eval ---------------------------------------------------------------------------------------------

def test_file_for_lm_eval_refuses(truth, d, tmp_path):
    model, file = truth.model, tmp_path/'one.pt'
    refused(lambda: st.save_steering(tmp_path/'one.csv', model, {d: 1.}), "expected '.pt'")
    refused(lambda: st.save_steering(file, model, {d: 0.}), 'would change nothing')
    refused(lambda: st.save_steering(file, model, {d: math.nan}), 'the dose at 1.resid')
    refused(lambda: st.save_steering(file, model, {}), 'nothing to steer')
    refused(lambda: st.save_steering(file, model, [d]), 'a dict from Direction')
    refused(lambda: st.save_steering(file, model, {d: 1.}, 'clam'), "did you mean 'clamp'?")
    refused(lambda: st.save_steering(file, model, {st.Direction(Site('resid', 1), torch.ones(9), 1.): 1.}), 'width 9', '24')
    refused(lambda: st.save_steering(file, model, {st.Direction(Site('u', 1), torch.ones(48), 1.): 1.}), '1.u is not the output')
    assert not file.exists()

# --- how long an edit lasts -----------------------------------------------------------------------------------------

def test_lasting_refuses(truth):
    model, clean = truth.model, truth.task.clean
    refused(lambda: st.lasting(model, clean, {}), 'no site')
    refused(lambda: st.lasting(model, clean, steer('1.resid', torch.ones(24))), 'at one token')
    refused(lambda: st.lasting(model, clean, steer('1.resid', torch.ones(24), at=[1, 2])), 'at one token')
    refused(lambda: st.lasting(model, clean, steer('1.resid', torch.ones(24), at=7)), 'tokens 0 to 6')
    refused(lambda: st.lasting(model, clean, steer('1.z', torch.ones(48), at=3)), 'does not change the state of block 1')
    for curves in ([], [1., .5], -torch.ones(3, 6), torch.full((3, 6), math.nan)): refused(lambda: st.edit_half_life(curves), 'curves')
