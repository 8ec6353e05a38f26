"""Circuits: what cannot be meant is refused in one sentence, ties do not depend on rounding, and a test that cannot fail is no test."""
import json, math, os, subprocess, sys, time
from types import SimpleNamespace
import numpy as np, pytest, torch
from mamba_interp.circuits import (Circuit, Edge, EdgePatcher, Graph, Scores, acdc, agreement,
                                   average_precision, edge_scores, equivalence_limits, equivalence_power,
                                   exact_scores, faithfulness, hsic_test, importance, independence_power,
                                   independence_test, mean_change, minimal_set, minimality_power, overlap,
                                   planted, prune, random_band, random_masks, random_paths, ranking, recovery,
                                   spans, spread_circuit, stability, strata_of, tie_groups, top, verify)
from mamba_interp.model import Mamba
from mamba_interp.report import Resampling, only_writer
from mamba_interp.tasks import Task, ioi

GRID = Graph('mamba', 2, 4, tuple(range(6)))

def refused(f, *words, kinds=(ValueError, OSError)):
    "The sentence with which `f` is refused: one line, with all of `words`."
    with pytest.raises(kinds) as e: f()
    said = str(e.value)
    assert '\n' not in said and all(o in said for o in words), said
    return said

class Fake:
    "A patcher whose metric is a function of the kept edges."
    def __init__(self, f, graph=GRID): self.graph, self.f, self.calls = graph, f, 0
    def metric(self, patched):
        self.calls += 1
        return self.f((~patched).double()).expand(3)
    @property
    def plain(self): return self.f(torch.ones(len(self.graph)).double()).expand(3)
    @property
    def ablated(self): return self.f(torch.zeros(len(self.graph)).double()).expand(3)

def adding(*edges):
    weights = torch.full((len(GRID),), 1e-4).double()
    weights[list(edges)] = 1
    return lambda k: k @ weights

def toy(b=6, t=7, seed=0, **options):
    "Random prompts."
    clean, corrupt = torch.randint(0, 61, (2, b, t), generator=torch.Generator().manual_seed(seed))
    return Task(clean, corrupt, clean[:, 1], corrupt[:, 1], dict(end=torch.full((b,), t - 1)), 'toy', **options)

@pytest.fixture(scope='module')
def model(): return Mamba.tiny().double().requires_grad_(False)

# ---- ties and rounding noise -------------------------------------------------------------------------------------

def by_hand(values, **how): return Scores(GRID, torch.as_tensor(values).double(), 'by hand', how)

@pytest.mark.parametrize('noise', (0., 1e-9, 1e-7))
def test_ties_are_in_the_graphs_order(noise):
    "Ranking, top, ACDC's order and stability do not change under rounding noise."
    rng = torch.Generator().manual_seed(0)
    exact = torch.zeros(len(GRID)).double()
    exact[[3, 9, 40, 41, 90]] = torch.tensor([-.2, -.2, -.2, .7, -.2]).double()
    exact[100:110] = .01
    for _ in range(5):
        noisy = exact*(1 + noise*torch.randn(len(GRID), generator=rng).double()) + noise*torch.randn(len(GRID), generator=rng).double()*.7
        scores = by_hand(noisy.expand(8, -1))
        assert ranking(scores)[:15] == [41, 3, 9, 40, 90, *range(100, 110)]
        assert ranking(scores, helpful=True)[:4] == [3, 9, 40, 90]
        assert [GRID.index(e) for e in top(scores, 3)] == [3, 9, 41]
        assert [GRID.index(e) for e in stability(scores, 3, Resampling(times=5)).chosen] == [3, 9, 41]

def test_a_choice_that_cuts_a_tie_says_so():
    "`how` names the tie, and is silent where there is none."
    values = torch.zeros(len(GRID))
    values[[3, 9, 40]] = torch.tensor([-.2, -.2, -.5])
    cut, whole = (top(by_hand(values.expand(2, -1)), n) for n in (2, 3))
    assert 'edges 2 and 3 of the ranking tie' in cut.how['tie'] and 'tie' not in whole.how
    assert 'edges 50 and 51' in top(by_hand(values.expand(2, -1)), 50).how['tie']       # zeros are a tie too

def test_a_slope_is_no_tie():
    "Many sizes with small gaps keep their order, as far as it is no rounding."
    slope = torch.linspace(1, .9, 20000).double()
    assert tie_groups(slope).unique().numel() > 5000
    assert (tie_groups(slope).diff() >= 0).all()

@pytest.mark.parametrize('values, how', ((0., {}), (1e-17, {}), (1e-13, dict(change=2.)), (1e-12, dict(change=100.))))
def test_rounding_noise_is_no_ranking(values, how):
    "nonlinear_metric_secant: scores of 1e-17 where the metric changes by .38 are not ranked."
    noise = values*torch.randn(4, len(GRID), generator=torch.Generator().manual_seed(0)).double()
    for choose in (lambda s: top(s, 3), ranking, lambda s: acdc(Fake(adding(1, 2)), .5, order=s)):
        refused(lambda: choose(by_hand(noise, **how)), 'no edge has a score')

def test_scores_know_what_the_metric_changes(model):
    "The change of the metric, and what a method misses of it, stand in `how`."
    scores = edge_scores(model, toy(), Graph.of(model))
    task = toy()
    true = [task.logit_diff(model(o)) for o in (task.clean, task.corrupt)]
    assert math.isclose(scores.how['change'], (true[1] - true[0]).abs().mean().item(), rel_tol=1e-4)
    assert scores.how['residual'] < 1e-6 < edge_scores(model, toy(), Graph.of(model), 'gradient').how['residual']

def test_opposite_effects_are_not_lost():
    "An edge worth +5 on one half of the prompts and −5 on the other: the mean misses it, each prompt does not."
    def both_ways(k): return 10 + 5*k[7]*torch.tensor([1., -1.]) + k[9]
    ones = torch.ones(len(GRID))
    patcher = SimpleNamespace(graph=GRID, metric=lambda o: both_ways((~o).double()), plain=both_ways(ones), ablated=both_ways(0*ones))
    assert {GRID.index(e) for e in acdc(patcher, .5)} == {9}
    assert {GRID.index(e) for e in acdc(patcher, .5, by=mean_change)} == {7, 9}
    values = torch.zeros(2, len(GRID))
    values[:, 7], values[:, 9] = torch.tensor([5., -5.]), 1.
    assert [ranking(by_hand(values), by=o)[0] for o in ('mean', 'each')] == [9, 7]
    refused(lambda: ranking(by_hand(values), by='abs'), "'mean', 'each', 'signed'")

# ---- tests that cannot fail --------------------------------------------------------------------------------------

def test_independence_needs_a_score_that_varies():
    "01_independence_is_vacuous: under NLD the model's own score is 1 on every prompt; with the logit difference the test works."
    house = Mamba.load('house')
    task, graph = ioi(house.tokenizer, 25, 28).with_baselines(house), Graph.of(house, 20)
    blind = torch.zeros(len(graph), dtype=torch.bool)
    blind[np.random.default_rng(0).choice(len(graph), 31, replace=False)] = True
    pairs = Resampling(together=2)
    nld, plain = (EdgePatcher(house, graph, task, metric=o) for o in (Task.normalised, None))
    refused(lambda: independence_test(nld, blind, excess=True, resampling=pairs), 'on every one of 25 prompts', 'logit difference')
    verdict = independence_test(plain, blind, excess=True, resampling=pairs)
    assert verdict.rejected and 'of samples' in verdict.power
    follows = agreement(nld, ~blind)                      # of the logit difference, whatever the patcher's metric
    assert not math.isnan(follows.r) and 0 <= follows.top <= 1

@pytest.mark.parametrize('x, y', ((np.ones(20), np.arange(20.)), (np.arange(20.), np.full(20, 3.)), (np.arange(20.), np.full(20, np.nan)), (np.arange(20.), np.arange(19.))))
def test_samples_without_variance_are_refused(x, y):
    "No test of independence from a constant, of NaN, or of samples of unequal length."
    refused(lambda: hsic_test(x, y))

def test_power():
    "F11: n = 25 rejects equivalence only at 5 wins or fewer or 20 or more, and finds a circuit that loses on 70 % of prompts in .19 of cases."
    assert (equivalence_limits(25), equivalence_limits(4)) == ((5, 20), None)
    assert abs(equivalence_power(25, .3) - .19) < .01 and abs(equivalence_power(200, .3) - .9) < .02
    assert independence_power(25, .3) < independence_power(100, .3) and minimality_power(20, 31, .5) < minimality_power(100, 31, .5)
    for bad in (lambda: equivalence_power(25, 2.), lambda: equivalence_power(0, .3), lambda: independence_power(25, 'a'), lambda: minimality_power(0, 1, .5)): refused(bad)

def test_sizes_are_judged_on_a_third_set():
    "F8: who chose is said, and what a third set says stands beside it; every smaller size or not is printed (F13)."
    falling = by_hand(-torch.arange(len(GRID), 0., -1)[None].expand(3, -1))
    find, other, fresh = (SimpleNamespace(graph=GRID, at=o) for o in (5, 7, 9))
    def by(patcher, mask): return float(mask.sum() >= patcher.at) - .1*(patcher.at == 9)
    found = minimal_set(falling, find, other, .9, by, fresh=fresh, points=4)
    how = found.circuit.how
    assert (len(found.circuit), how['chosen_on']) == (7, 'find and held_out') and abs(how['reached_fresh'] + .1) < 1e-9
    assert ('may do' in str(found)) != how['every_smaller_size'] and 'which chose nothing' in str(found)
    assert 'reached_fresh' in prune(found.circuit, find, other, .9, by, fresh=fresh).how
    for bad in (dict(target='a'), dict(target=math.nan), dict(points=0), dict(fresh=SimpleNamespace(graph=Graph('mamba', 2, 4)))):
        refused(lambda: minimal_set(falling, find, other, **dict(target=.9, by=by) | bad))

def test_floors_are_no_p_values(model):
    "With no random circuit as good, a band says 'none of 100', and p only as a bound."
    patcher = EdgePatcher(model, Graph.of(model), toy())
    said = str(random_band(patcher, torch.ones(len(patcher.graph)), 9, how='uniform'))
    assert 'of 9 random controls' in said

# ---- random circuits that are fair -------------------------------------------------------------------------------

@pytest.mark.parametrize('labels', ('tokens', 'spans'))
def test_random_paths_begin_where_prompts_differ(model, labels):
    "A path from a token that does not differ carries nothing, and is no opponent."
    task = toy()
    task.corrupt[:] = task.clean
    task.corrupt[:, 2] = (task.clean[:, 2] + 1) % 61
    task.positions['two'] = torch.full((len(task),), 2)
    where = spans(task, ('two', 'end')) if labels == 'spans' else None
    patcher = EdgePatcher(model, Graph.of(model, where or 7), task, where)
    paths = [[patcher.graph.edges[i] for i in path] for path,_ in zip(random_paths(patcher, np.random.default_rng(0)), range(40))]
    assert {path[-1].at for path in paths} == {'two' if where else 2} and {path[-1].src.name for path in paths} == {'embed'}
    if where: return
    assert all(edge.at == (later.since if later.kind == 'time' else later.at - (later.lag or 0)) for path in paths for later,edge in zip(path, path[1:]))

def test_random_circuits_among_the_first_edges(model):
    "Drawn among some edges, and no more than there are."
    patcher = EdgePatcher(model, Graph.of(model), toy())
    among = list(range(10, 20))
    drawn = random_masks(patcher, torch.stack([torch.arange(49) < n for n in (3, 8)]), 'uniform', among=among)
    assert drawn.sum(1).tolist() == [3, 8] and (drawn[0] <= drawn[1]).all() and set(drawn[1].nonzero()[:, 0].tolist()) <= set(among)
    refused(lambda: random_masks(patcher, torch.arange(49)[None] < 11, 'uniform', among=among), '11 edges cannot be drawn among 10')
    refused(lambda: random_masks(patcher, torch.arange(49)[None] < 5, 'paths', among=among), "how='uniform'")

# ---- planted -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('lags', (3, 4))
def test_a_query_read_through_several_lags(lags):
    "04_secant_misses_a_planted_circuit: exact, ACDC and frozen find it, secant does not."
    known = spread_circuit(6, lags=lags)
    verify(known)
    assert len(known.truth) == 2*lags + 2
    for method in ('exact', 'acdc', 'frozen'): assert recovery(known, method) == (1., 1.), method
    assert average_precision(importance(known, 'secant'), known.mask) < .85
    assert recovery(spread_circuit(6, lags=1), 'secant').auroc > .9

def test_a_detector_shows_only_where_the_first_mention_changes():
    "07_detector_is_invisible: S2 -> other name shows none of the planted counter; S1 -> new name does."
    for swap, there in (('S2 to IO', False), ('S2 to C', False), ('S1 to C', True)):
        known = planted(f'IOI, {swap}', 4)
        counter = [i for i,e in enumerate(known.graph.edges) if e.kind == 'time' and e.dst.layer == 0]
        p, one = known.patcher, torch.eye(len(known.graph), dtype=torch.bool)
        assert (max((p.metric(one[i]) - p.plain).abs().max() for i in counter) > .1*known.scale) == there

# ---- files -------------------------------------------------------------------------------------------------------

def written(folder, change=lambda v: v):
    "A good circuit file, changed."
    few = Circuit(GRID, ['embed -> 0.read_x @ 2', '0.x -> 0.conv lag 1 @ 3', '0.state @ 3 -> 0.y @ 3'], dict(method='by hand'))
    few.save(file := folder/'few.json')
    value = json.loads(file.read_text())
    new = change(value)
    file.write_text(new if isinstance(new, str) else json.dumps(value if new is None else new))
    return file

def put(*path, to):
    "A change of one field."
    def change(value):
        at = value
        for k in path[:-1]: at = at[k]
        at[path[-1]] = to
    return change

def without(*path):
    def change(value):
        at = value
        for k in path[:-1]: at = at[k]
        del at[path[-1]]
    return change

DAMAGE = dict(
    null=lambda v: 'null', a_list=lambda v: [], a_number=lambda v: '3', a_text=lambda v: '"circuit"', deep=lambda v: '['*10**5, empty=lambda v: '', half=lambda v: json.dumps(v)[:60],
    binary=lambda v: 'ÿ\0', other_what=put('what', to='run of acdc'), what_list=put('what', to=[]), no_what=without('what'), no_how=without('how'), no_graph=without('graph'), no_edges=without('edges'),
    how_list=put('how', to=[1]), how_text=put('how', to='secant'), how_null=put('how', to=None), graph_null=put('graph', to=None), graph_list=put('graph', to=[]), graph_unknown=put('graph', 'colour', to=1),
    no_labels=without('graph', 'labels'), model_type=put('graph', 'model_type', to='gpt2'), model_type_list=put('graph', 'model_type', to=[]), layers_text=put('graph', 'n_layers', to='2'), layers_zero=put('graph', 'n_layers', to=0),
    layers_negative=put('graph', 'n_layers', to=-1), layers_float=put('graph', 'n_layers', to=2.5), layers_true=put('graph', 'n_layers', to=True), width_null=put('graph', 'width', to=None), width_zero=put('graph', 'width', to=0),
    labels_text=put('graph', 'labels', to='012345'), labels_gap=put('graph', 'labels', to=[0, 2, 3]), labels_mixed=put('graph', 'labels', to=[0, 'a']), labels_empty=put('graph', 'labels', to=[]), labels_twice=put('graph', 'labels', to=['a', 'a']),
    labels_nested=put('graph', 'labels', to=[[0], [1]]), kinds_text=put('graph', 'kinds', to='depth'), kinds_unknown=put('graph', 'kinds', to=['depth', 'head']), kinds_empty=put('graph', 'kinds', to=[]), kinds_order=put('graph', 'kinds', to=['lag', 'depth']),
    kinds_nested=put('graph', 'kinds', to=[['depth']]), split_text=put('graph', 'split', to='yes'), pairs_here=put('graph', 'pairs', to=[['a', 'b']]), pairs_text=put('graph', 'pairs', to='ab'), edges_text=put('edges', to='embed -> 0.read_x @ 2'),
    edges_null=put('edges', to=None), edges_numbers=put('edges', to=[1, 2, 3]), edge_unknown=put('edges', 0, to='embed -> 7.read_x @ 2'), edge_nonsense=put('edges', 0, to='hello'), edge_lag=put('edges', 1, to='0.x -> 0.conv lag 9 @ 3'),
    edge_before_0=put('edges', 1, to='0.x -> 0.conv lag 3 @ 2'), edge_list=put('edges', 0, to=['embed', '0.read_x']), edge_twice=put('edges', 1, to='embed -> 0.read_x @ 2'), n_wrong=put('n_edges', to=4), n_text=put('n_edges', to='3'), n_true=put('n_edges', to=True),
    layers_10_4=put('graph', 'n_layers', to=10**4), layers_2000=put('graph', 'n_layers', to=2000), layers_10_12=put('graph', 'n_layers', to=10**12), width_10_12=put('graph', 'width', to=10**12), labels_10_5=put('graph', 'labels', to=list(range(10**5))),
    names_10_5=put('graph', 'labels', to=[f's{i}' for i in range(10**5)]))

@pytest.mark.parametrize('name', DAMAGE)
def test_damaged_circuit_files(name, tmp_path):
    "reliability, circuit files: one sentence that names the file, at once, also for graphs that would fill the memory."
    file = written(tmp_path, DAMAGE[name])
    began = time.time()
    refused(lambda: Circuit.load(file), str(file))
    assert time.time() - began < 5

def test_files_that_are_none(tmp_path, model):
    "A missing file, a folder, another model's circuit, and a good one."
    refused(lambda: Circuit.load(tmp_path/'no.json'), 'no.json')
    refused(lambda: Circuit.load(tmp_path), str(tmp_path))
    file = written(tmp_path)
    refused(lambda: Circuit.load(file, model), 'another model')
    refused(lambda: Circuit.load(file, graph=Graph('mamba', 2, 4)), 'is a circuit of')
    assert len(Circuit.load(file, graph=GRID)) == 3

def test_many_span_labels_are_counted_fast(tmp_path):
    "A graph of many named spans is counted from its list of pairs."
    names = [f's{i}' for i in range(300)]
    def change(v):
        v['graph'] |= dict(labels=names, pairs=[[a, a] for a in names])
        v |= dict(edges=['embed -> 0.read_x @ s3'], n_edges=1)
    began = time.time()
    assert len(Circuit.load(written(tmp_path, change))) == 1
    assert time.time() - began < 10

@pytest.mark.parametrize('how', ([], 'secant', 3, dict(x={1, 2}), dict(x=math.nan), dict(x=torch.ones(2))))
def test_how_that_is_no_json(how, tmp_path):
    "`how` a list, a text, or what JSON cannot hold."
    refused(lambda: Circuit(GRID, ['embed -> 0.read_x @ 2'], how).save(tmp_path/'a.json'), '`how`')
    assert not list(tmp_path.iterdir())

def test_saving_where_it_cannot_be(tmp_path):
    "A folder given as the file, a file given as the folder: one sentence, and nothing left beside."
    few = Circuit(GRID, ['embed -> 0.read_x @ 2'])
    (tmp_path/'folder').mkdir()
    (tmp_path/'file').write_text('')
    refused(lambda: few.save(tmp_path/'folder'), 'is a folder')
    refused(lambda: few.save(tmp_path/'file'/'a.json'), 'cannot be written')
    assert sorted(o.name for o in tmp_path.iterdir()) == ['file', 'folder'] and not list((tmp_path/'folder').iterdir())
    few.save(tmp_path/'new'/'a.json')
    assert len(Circuit.load(tmp_path/'new'/'a.json')) == 1

def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    "disk_full: the older circuit stays whole, and the sentence names the file."
    few = Circuit(GRID, ['embed -> 0.read_x @ 2'])
    few.save(tmp_path/'a.json')
    before = (tmp_path/'a.json').read_bytes()
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    refused(lambda: few.save(tmp_path/'a.json'), 'a.json', 'No space left')
    assert (tmp_path/'a.json').read_bytes() == before and [o.name for o in tmp_path.iterdir()] == ['a.json']

@pytest.mark.parametrize('bad', ('embed -> 0.read_x @ 2', 3, [3], [None], ['embed'], Edge.parse('embed -> 0.read_x @ 2')))
def test_edges_that_are_none(bad):
    "A single edge for a list, numbers, nothing."
    with pytest.raises((ValueError, TypeError)) as e: Circuit(GRID, bad)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('bad', ([1, 0], torch.ones(3), torch.full((len(GRID),), .5), torch.full((len(GRID),), math.nan), 'mask', None, torch.full((len(GRID),), 2)))
def test_masks_that_are_none(bad):
    "A mask of another length, of shares, of NaN."
    refused(lambda: Circuit.of(GRID, bad), 'mask')

# ---- ACDC --------------------------------------------------------------------------------------------------------

ARGUMENTS = dict(nan=dict(threshold=math.nan), zero=dict(threshold=0), negative=dict(threshold=-.1), text=dict(threshold='.5'), infinite=dict(threshold=math.inf), none=dict(threshold=None),
    chunk_0=dict(chunk=0), chunk_half=dict(chunk=.5), chunk_text=dict(chunk='all'), chunk_negative=dict(chunk=-3), order_text=dict(order='embed -> 0.read_x @ 2'), order_number=dict(order=3), order_numbers=dict(order=[1, 2]),
    order_empty=dict(order=[]), order_graph=dict(order=Scores(Graph('mamba', 2, 4), torch.ones(1, 51), 'x')), start_mask=dict(start=torch.ones(len(GRID))), start_empty=dict(start=Circuit(GRID, [])),
    start_graph=dict(start=Circuit(Graph('mamba', 2, 4), ['embed -> 0.read_x'])), missing=dict(order=Scores(GRID, torch.full((1, len(GRID)), math.nan), 'x')))

@pytest.mark.parametrize('name', ARGUMENTS)
def test_acdc_arguments(name):
    "One sentence, before the first evaluation."
    fake = Fake(adding(1, 2))
    refused(lambda: acdc(fake, **dict(threshold=.5) | ARGUMENTS[name]))
    assert fake.calls == 0

@pytest.mark.parametrize('patcher', (None, 3, 'house', SimpleNamespace(graph=GRID)))
def test_acdc_wants_a_patcher(patcher): refused(lambda: acdc(patcher, .5), 'expected an `EdgePatcher`')

def test_metric_that_is_no_number():
    "uninformative_metric: NaN on one prompt is told with the prompt; a constant metric is refused."
    nan = SimpleNamespace(graph=GRID, metric=lambda o: torch.tensor([1., math.nan]), plain=torch.tensor([1., math.nan]), ablated=torch.zeros(2))
    refused(lambda: acdc(nan, .5), 'nan on prompt 1')
    refused(lambda: acdc(Fake(lambda k: torch.ones(1)), .5), 'does not depend on the model')

def test_checkpoint_of_another_run(tmp_path):
    "Another threshold, order, chunk, measure or metric: refused, naming both values."
    file = tmp_path/'a.json'
    found = acdc(Fake(adding(1, 2)), .5, checkpoint=file)
    again = Fake(adding(1, 2))
    assert acdc(again, .5, checkpoint=file).keep == found.keep and again.calls == 0
    refused(lambda: acdc(Fake(adding(1, 2)), .4, checkpoint=file), 'threshold 0.5 there, 0.4 here')
    refused(lambda: acdc(Fake(adding(1, 2)), .5, chunk=3, checkpoint=file), 'chunk', 'there, 3 here')
    refused(lambda: acdc(Fake(adding(1, 2)), .5, by=mean_change, checkpoint=file), 'by absent there')
    refused(lambda: acdc(Fake(adding(1, 2, 3)), .5, checkpoint=file), 'plain')

@pytest.mark.parametrize('values', ([1, 'a'], [None], [True], 'text', None, {}, [math.nan]))
def test_damaged_checkpoints(values, tmp_path):
    "Values that are no numbers, or no list of them."
    file = tmp_path/'a.json'
    acdc(Fake(adding(1, 2)), .5, checkpoint=file)
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(values=values)))
    refused(lambda: acdc(Fake(adding(1, 2)), .5, checkpoint=file), 'a.json')

@pytest.mark.parametrize('text', ('', 'null', '[]', '{"what": "run of acdc"}', '{"what": "circuit of mamba_interp"}', '{"what": "run of acdc", "about": [], "values": []}'))
def test_foreign_checkpoints(text, tmp_path):
    "A file that is no run of ACDC is refused before an evaluation, and left as it is."
    file, fake = tmp_path/'a.json', Fake(adding(1, 2))
    file.write_text(text)
    refused(lambda: acdc(fake, .5, checkpoint=file), 'a.json')
    assert fake.calls == 0 and file.read_text() == text

def test_too_long_a_checkpoint(tmp_path):
    "More evaluations than the search needs."
    file = tmp_path/'a.json'
    acdc(Fake(adding(1, 2)), .5, checkpoint=file)
    value = json.loads(file.read_text())
    file.write_text(json.dumps(value | dict(values=value['values'] + [1.])))
    refused(lambda: acdc(Fake(adding(1, 2)), .5, checkpoint=file), 'needs only')

def test_checkpoint_where_it_cannot_be(tmp_path):
    "A folder, or a folder that is a file: told before the first evaluation; a missing folder is made."
    fake = Fake(adding(1, 2))
    (tmp_path/'file').write_text('')
    refused(lambda: acdc(fake, .5, checkpoint=tmp_path), 'is a folder')
    refused(lambda: acdc(fake, .5, checkpoint=tmp_path/'file'/'a.json'), 'cannot be written')
    assert fake.calls == 0
    assert len(acdc(fake, .5, checkpoint=tmp_path/'new'/'deeper'/'a.json')) == 2

def test_a_full_disk_is_told_before_the_first_evaluation(tmp_path, monkeypatch):
    "disk_full, acdc: before the first evaluation, not after it."
    import mamba_interp.report.folders as folders
    def full(*args, **kw): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(folders.tempfile, 'TemporaryFile', full)
    fake = Fake(adding(1, 2))
    refused(lambda: acdc(fake, .5, checkpoint=tmp_path/'a.json'), 'disk is full')
    assert fake.calls == 0

def test_two_processes_on_one_checkpoint(tmp_path):
    "The second is refused; another file in the same folder is not."
    with only_writer(tmp_path, 'a.json'):
        fake = Fake(adding(1, 2))
        refused(lambda: acdc(fake, .5, checkpoint=tmp_path/'a.json'), 'a.json', 'another process')
        assert fake.calls == 0 and len(acdc(fake, .5, checkpoint=tmp_path/'b.json')) == 2
    assert len(acdc(fake, .5, checkpoint=tmp_path/'a.json')) == 2

def test_killed_and_resumed(tmp_path):
    "A SIGKILL in the middle: the same circuit, and nothing measured twice."
    script = '''
import os, signal, sys, torch
from mamba_interp.circuits import Graph, acdc
class Dies:
    graph, calls = Graph('mamba', 2, 4, tuple(range(6))), 0
    weights = torch.full((len(graph),), 1e-4).double()
    weights[[1, 50, 90]] = 1
    def f(self, kept): return (kept.double() @ self.weights).expand(3)
    def metric(self, patched):
        if self.calls == 9: os.kill(os.getpid(), signal.SIGKILL)
        self.calls += 1
        return self.f(~patched)
    plain, ablated = (property(lambda self, o=o: self.f(torch.full((len(self.graph),), o))) for o in (True, False))
acdc(Dies(), .5, checkpoint=sys.argv[1])
'''
    killed = subprocess.run([sys.executable, '-c', script, str(tmp_path/'a.json')], capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()[-500:]
    whole, rest = Fake(adding(1, 50, 90)), Fake(adding(1, 50, 90))
    assert acdc(rest, .5, checkpoint=tmp_path/'a.json').keep == acdc(whole, .5).keep
    assert rest.calls == whole.calls - 9

# ---- scores ------------------------------------------------------------------------------------------------------

SCORING = dict(batch_0=dict(batch=0), batch_negative=dict(batch=-1), batch_half=dict(batch=.5), batch_text=dict(batch='8'), steps_0=dict(method='ig', steps=0), steps_text=dict(method='ig', steps='5'), method=dict(method='eap'), method_none=dict(method=None),
    base=dict(base='dirty'), metric=dict(metric='logit_diff'), constant=dict(metric=lambda task, logits: torch.ones(len(task))), one_number=dict(metric=lambda task, logits: logits.mean()))

@pytest.mark.parametrize('name', SCORING)
def test_edge_scores_arguments(name, model):
    "One sentence for what cannot be meant."
    refused(lambda: edge_scores(model, toy(), Graph.of(model), **SCORING[name]))

@pytest.mark.parametrize('method', ('secant', 'ig', 'exact'))
def test_prompts_that_agree(method, model):
    "edge_scores where clean equals corrupt: refused as acdc does, not zeros."
    task = toy()
    task.corrupt[:] = task.clean
    refused(lambda: edge_scores(model, task, Graph.of(model), method), 'clean')

def test_what_is_no_model_task_or_graph(model):
    "The wrong thing in each place."
    refused(lambda: edge_scores('house', toy(), Graph.of(model)))
    refused(lambda: edge_scores(SimpleNamespace(config=None), toy(), Graph.of(model)))
    refused(lambda: edge_scores(model, None, Graph.of(model)))
    refused(lambda: edge_scores(model, toy(), None), 'Graph')
    refused(lambda: edge_scores(model, toy(), Graph('mamba', 5, 4)), 'another model')
    patcher = EdgePatcher(model, Graph.of(model), toy())
    for bad in ('embed -> 0.read_x', 3, [3], ['embed -> 9.read_x']): refused(lambda: exact_scores(patcher, bad))

# ---- strata ------------------------------------------------------------------------------------------------------

def test_strata_of_a_design():
    "F10: cells of the design from the task's groups; neighbours across two cells are no pair."
    task = toy(8, group=torch.tensor([0, 0, 1, 1, 0, 0, 1, 1]), groups=('a', 'b'))
    assert strata_of(task, 2) == (0, 1, 0, 1)
    refused(lambda: strata_of(task, 4), 'one group')
    refused(lambda: strata_of(task, 3), 'do not divide')
    refused(lambda: strata_of(toy()), 'no groups')

def test_overlap():
    "What two sets of prompts share is counted."
    task = toy(6)
    task.positions['two'] = torch.full((6,), 2)
    assert overlap(task, task).prompts == 6 and overlap(task, task).words == overlap(task, task).of_words
    assert 'of 6 prompts' in str(overlap(task, toy(6, seed=1)))

# ---- masks, scores and measures of another kind ------------------------------------------------------------------

@pytest.fixture(scope='module')
def patched(model):
    task, graph = toy(), Graph.of(model, 7)
    return EdgePatcher(model, graph, task), edge_scores(model, task, graph)

@pytest.mark.parametrize('mask', [None, 'x', [1], torch.ones(3).bool(), torch.full((5,), .5)], ids=str)
def test_measures_want_a_mask(patched, mask):
    "uninformative_metric: every measure of a circuit checks its mask in one way."
    from mamba_interp.circuits import accuracy, mean_kl, share
    for f in (share, accuracy, mean_change, mean_kl): refused(lambda: f(patched[0], mask), 'mask')
    refused(lambda: share(None, mask), 'EdgePatcher')

def test_a_mask_of_numbers_is_a_mask(patched):
    "Ones and zeros, as numbers, keep what True and False keep."
    from mamba_interp.circuits import share
    half = torch.arange(len(patched[0].graph)) % 2
    assert share(patched[0], half) == share(patched[0], half.bool()) == share(patched[0], half.double())

@pytest.mark.parametrize('by', [3, 'share', lambda p, mask: 'x', lambda p, mask: None, lambda p, mask: math.nan, lambda p, mask: torch.ones(2), lambda p: 1.], ids=str)
def test_a_measure_gives_one_number(patched, by):
    "uninformative_metric: a measure of one's own is refused where it first says something else."
    patcher, scores = patched
    refused(lambda: acdc(patcher, .01, by=by), 'measure' if callable(by) else 'by')
    refused(lambda: minimal_set(scores, patcher, patcher, .5, by), 'measure' if callable(by) else 'by')

@pytest.mark.parametrize('values', [torch.ones(6, 3), torch.ones(7), torch.zeros(0, 7), 'x', None], ids=str)
def test_scores_have_a_number_of_each_edge(patched, values):
    "uninformative_metric: scores of another shape are not ranked."
    refused(lambda: top(Scores(patched[0].graph, values, 'by hand'), 3), 'values of scores')
    refused(lambda: top(None, 3), 'Scores')

def test_circuits_of_another_kind(patched, tmp_path):
    "What is no circuit, graph, file or patcher is said to be none."
    from mamba_interp.circuits import connected, jaccard
    patcher, scores = patched
    kept = top(scores, 5)
    for other in (3, None, kept.mask):
        refused(lambda: kept & other, 'Circuit')
        refused(lambda: jaccard(other, kept), 'Circuit')
        refused(lambda: connected(other), 'Circuit')
    refused(lambda: Circuit(None, []), 'Graph')
    for keep in (None, 3): refused(lambda: Circuit(GRID, keep), 'list of edges')
    for name in (None, 3, ''):
        refused(lambda: kept.save(name), 'name')
        refused(lambda: Circuit.load(name), 'name')
    refused(lambda: Circuit.load(tmp_path/'none'), 'none cannot be read')
    refused(lambda: minimal_set(scores, None, patcher, .5), 'EdgePatcher')
    refused(lambda: prune(kept, patcher, None, -9), 'EdgePatcher')
    refused(lambda: faithfulness(None, kept), 'EdgePatcher')
    refused(lambda: faithfulness(patcher, kept, None), 'Resampling')
    refused(lambda: random_masks(patcher, None), 'masks')
    refused(lambda: random_masks(patcher, [kept.mask], seed=-1), 'seed')
    refused(lambda: equivalence_limits(10, level=2), 'level')
    refused(lambda: independence_power(20, .5, repeats=0), 'repeats')
    refused(lambda: strata_of(None), 'Task')
    refused(lambda: edge_scores(patcher.model, patcher.task, patcher.graph, spans=3), 'Spans')

def test_recovery_is_measured_on_numbers():
    "04_secant_misses_a_planted_circuit: a score that is no number, or a truth of whole numbers, gives no area."
    from mamba_interp.circuits import auroc, planted_ioi, planted_spread
    for f in (auroc, average_precision):
        refused(lambda: f(torch.tensor([math.nan, 1.]), torch.tensor([True, False])), 'not finite')
        refused(lambda: f(torch.tensor([0., 1.]), torch.tensor([0, 1])), 'int64')
        refused(lambda: f(None, None), 'NoneType')
    for f in (verify, lambda o: recovery(o, 'secant')): refused(lambda: f(None), 'Planted')
    refused(lambda: planted_ioi(names=2), 'names')
    refused(lambda: planted_spread(pairs=9), 'keys')

@pytest.mark.parametrize('name, least', dict(planted_latest=10, planted_reset=11, planted_marked=11, planted_asked=11, planted_joint=10, planted_ioi=4).items())
def test_planted_prompts_need_tokens(name, least):
    "04_secant_misses_a_planted_circuit: numbers of tokens, pairs and prompts of which nothing can be drawn."
    from mamba_interp import circuits as p
    draw, sizes = getattr(p, name), dict(names=3) if name == 'planted_ioi' else {}
    assert len(draw(3, vocab=least, **sizes)) == 3
    for vocab in (least - 1, 0, -3, 2.5, None): refused(lambda: draw(3, vocab=vocab, **sizes), 'vocab', f'least {least}')
    refused(lambda: draw(0), '`n` is 0')
    many = 'names' if sizes else 'triples' if name == 'planted_marked' else 'pairs'
    for wrong in (1, 2.5): refused(lambda: draw(3, **{many: wrong}), many)

def test_planted_models_need_tokens():
    "04_secant_misses_a_planted_circuit: the same for the models."
    from mamba_interp.circuits import induction_model, ioi_model
    for vocab in (0, 2.5, None): refused(lambda: induction_model(vocab), '`vocab`')
    for names, vocab in ((9, 8), (0, 8), (3, 0)): refused(lambda: ioi_model(vocab, names), '`names`' if vocab else '`vocab`')

@pytest.mark.parametrize('cells', ('0.x', '*.block_out'))
def test_calibration_does_not_hang_on_rounding(model, cells):
    "Estimates that tie to rounding are taken, and others drawn, in forward order."
    from mamba_interp.circuits import attribute, calibrate
    task = toy()
    effects = attribute(model, task, ['*.resid', '*.read_x', '*.read_z', cells])
    def shaken(seed):
        gen = torch.Generator().manual_seed(seed)
        most = max(o.mean(0).abs().max() for o in effects.values())
        return {s: o + 1e-9*most*torch.randn(o.shape, generator=gen, dtype=o.dtype) for s,o in effects.items()}
    found = [calibrate(model, task, shaken(seed), top=6, others=6).cells for seed in range(3)]
    assert found[0] == found[1] == found[2]

def test_the_share_of_nodes(model):
    "several_answers: `share` measures a patcher of features as well, with several right answers, and checks its mask."
    from mamba_interp.circuits import share
    from mamba_interp.features import FeaturePatcher, feature_scores
    from mamba_interp.model import Site
    from mamba_interp.sae import SAE, TopK
    task = toy(also_right=torch.full((6, 1), 60))
    saes = {Site('resid', 1): SAE(24, 48, TopK(8), site='1.resid', seed=1).double()}
    patcher = FeaturePatcher(model, saes, task, feature_scores(model, saes, task).nodes)
    assert torch.allclose(patcher.plain, task.logit_diff(model(task.clean, at=6)), atol=1e-6)
    assert share(patcher, torch.ones(len(patcher.nodes)).bool()) == 1
    for mask in (None, 'x', torch.ones(3), [3]): refused(lambda: share(patcher, mask), 'nodes')

def test_a_stored_circuit_is_the_same_on_any_processor(tmp_path):
    "What a circuit reaches is stored to the digits that every processor agrees on: the file does not change."
    scores, texts = by_hand(torch.linspace(1, .1, len(GRID)).expand(3, -1)), []
    for noise in (0, 1e-8, -1e-8):
        summed = lambda k: adding(*range(10))(k) + noise*k[:7].sum()
        sets = [Fake(summed) for _ in range(3)]
        found = minimal_set(scores, *sets[:2], .7, fresh=sets[2]).circuit
        found.save(tmp_path/'circuit.json')
        texts.append((tmp_path/'circuit.json').read_text())
    assert texts[0] == texts[1] == texts[2] and found.how['reached'] == float(f"{found.how['reached']:.5g}") == found.how['reached_fresh']

def test_a_map_draws_ties_in_the_order_given():
    "Edges of one path do the same, to the last digits: their lines lie over each other in one order on any processor."
    from mamba_interp.circuits import circuit_map
    edges = list(map(Edge.parse, ('0.u -> 0.to_value @ 6', '0.state @ 6 -> 0.y @ 8', '0.block_out -> final_resid @ 8', 'embed -> 0.read_x @ 6')))
    def drawn(noise): return [o.hovertemplate for o in circuit_map(edges, [.427, .427 + noise, .6, .1], range(9)).data]
    assert drawn(1e-9) == drawn(0.) == drawn(-1e-9) != drawn(.01)
