"What goes wrong in attribution and in graphs is right, or refused in one sentence."
import numpy as np, pytest, torch, transformers
from transformers import BambaConfig, FalconMambaConfig, MambaConfig
from mamba_interp.circuits import (LARGEST, METHODS, Edge, EdgePatcher, Graph, Secant, Spans, attribute,
                                   calibrate, cut_sums, integrate_activations, metric_secant, missed, nodes,
                                   patch_effects, path_effects, path_patch, points, scan_heads_secant, site_effects, spans)
from mamba_interp.model import Adapter, Mamba, Site
from mamba_interp.tasks import Task

def lively(kind=1, **config):
    "A random model in which every part matters, in float64."
    model = Mamba.tiny(kind=kind, seed=3, num_hidden_layers=2, **config).double().requires_grad_(False)
    with torch.no_grad(): _ = [o.mul_(1.5) for o in model.parameters()]
    return model

ENDS = torch.tensor([7, 5, 7, 6, 7])

def toy(b=5, t=8):
    gen = torch.Generator().manual_seed(1)
    clean = torch.randint(0, 61, (b, t), generator=gen)
    corrupt = clean.clone()
    corrupt[:, 3] = (clean[:, 3] + 5) % 61
    right = torch.randint(0, 61, (b,), generator=gen)
    return Task(clean, corrupt, right, (right + 3) % 61, dict(end=ENDS[:b], key=torch.full((b,), 3)), 'toy')

MODELS = {1: lively(1), 2: lively(2, n_groups=2, num_heads=12, head_dim=4, state_size=3)}
TASK = toy()

def kl(model):
    def metric(task, logits):
        with torch.no_grad(): want = model(task.clean, at=task.positions['end']).log_softmax(-1)
        return (want.exp()*(want - logits.log_softmax(-1))).sum(-1)
    return metric

def one_sentence(call, *words, kinds=(ValueError, TypeError, OSError)):
    "The call is refused, by us, in one sentence that has these words."
    with pytest.raises(kinds) as told: call()
    said = str(told.value)
    assert all(o in said for o in words) and '\n' not in said and 20 < len(said) < 700, said

METRICS = {'difference': lambda m: None, 'probability': lambda m: Task.probability, 'log': lambda m: lambda t,o: t.probability(o).log(), 'kl': kl,
    'relative': lambda m: lambda t,o: t.probability(o, relative=True), 'square': lambda m: lambda t,o: t.logit_diff(o)**2,
    'bent': lambda m: lambda t,o: t.logit_diff(o).relu() + o.amax(-1), 'entropy': lambda m: lambda t,o: -(o.softmax(-1)*o.log_softmax(-1)).sum(-1)}

@pytest.mark.parametrize('kind', (1, 2))
@pytest.mark.parametrize('name', METRICS)
def test_sums_are_the_change_of_any_metric(kind, name):
    "nonlinear_metric_secant"
    model, metric = MODELS[kind], METRICS[name](MODELS[kind])
    for base in ('clean', 'corrupt'):
        effects = attribute(model, TASK, ['embed', '*.resid', 'final_resid'], metric=metric, batch=2, base=base)
        found = cut_sums(model, TASK, effects, metric, base)
        size = found.true.abs().max()
        assert size > 1e-6 and effects.residual == 0
        for sums in found.cuts.values(): assert (sums - found.true).abs().max() < 1e-9*size
    if name != 'kl':
        ig = attribute(model, TASK, 'embed', 'ig', steps=40, metric=metric)
        assert ig.residual < .1, 'integrated gradients approach the same change'

@pytest.mark.parametrize('kind', (1, 2))
def test_edge_points_carry_the_change(kind):
    "nonlinear_metric_secant: what edge scores are made of"
    for method in METHODS:
        model, metric = MODELS[kind], Task.probability
        parts = list(points(model, TASK, '*.x', method, metric=metric))
        summed = sum(o.weight*o.summed for o in parts)
        assert parts[0].true.shape == (5,) and torch.isfinite(summed).all()
        assert (missed(summed, parts[0].true) == 0) == (method == 'secant')

def test_a_metric_that_jumps_or_is_flat_is_refused():
    "nonlinear_metric_secant: what cannot be complete"
    model = MODELS[1]
    one_sentence(lambda: attribute(model, TASK, metric=Task.accuracy), 'does not depend')
    one_sentence(lambda: attribute(model, TASK, metric=lambda t,o: t.logit_diff(o) + 3*(o.argmax(-1) % 2)), 'jumps', 'prompt')
    for method in ('gradient', 'frozen', 'detached'): one_sentence(lambda: attribute(model, TASK, metric=kl(model), method=method), 'gradient', "'secant'")
    one_sentence(lambda: attribute(model, TASK, metric=lambda t,o: 0*t.logit_diff(o) + 1), 'the metric is the same')

def test_metric_secant_is_the_mean_slope():
    "nonlinear_metric_secant: against the integral by a thousand equal steps"
    a, b = 3*torch.randn(2, 5, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    task = Task(TASK.clean, TASK.corrupt, torch.arange(5), torch.arange(5) + 5, TASK.positions)
    for metric in (Task.probability, lambda t,o: t.probability(o).log()):
        leaf, total = torch.zeros(5, 13, dtype=torch.float64), 0
        for i in range(1000):
            x = torch.lerp(a, b, (i + .5)/1000).requires_grad_()
            total = total + torch.autograd.grad(metric(task, x).sum(), x)[0]/1000
        found = metric_secant(metric, task, a, b)
        assert (found - total).abs().max() < 1e-4*total.abs().max()
        halves = a.float(), b.float()
        assert (metric_secant(metric, task, *halves) - found).abs().max() < 1e-3*found.abs().max()

@pytest.mark.parametrize('shape', ((2, 7, 6, 3, 2, 5, True), (1, 1, 2, 1, 1, 1, False), (3, 5, 3, 4, 3, 2, True), (2, 40, 4, 3, 2, 3, False)))
@pytest.mark.parametrize('most', (1, 2**21))
def test_mamba2_slopes_are_those_of_every_step(shape, most, monkeypatch):
    "mamba2_secant_memory: the same numbers, without keeping states"
    import mamba_interp.circuits.rules as module
    few = module._few_heads
    monkeypatch.setattr(module, '_few_heads', lambda x, B: few(x, B, most))
    b, T, heads, p, g, n, start = shape
    gen = torch.Generator().manual_seed(b)
    new = lambda *size: torch.randn(*size, dtype=torch.float64, generator=gen)
    now, then = ([new(b, T, heads, p), new(b, T, heads).abs(), new(b, T, g, n), new(b, T, g, n), new(b, heads, p, n) if start else None] for _ in range(2))
    for x,y in zip(now[:4], then): y[:, ::2] = x[:, ::2]
    A, weights = -new(heads).abs(), (new(b, T, heads, p), new(b, heads, p, n))
    def slopes(scan):
        leaves = [None if o is None else o.clone().requires_grad_() for o in now]
        outs = scan(*leaves[:2], A, *leaves[2:])
        return *outs, *torch.autograd.grad(outs, [o for o in leaves if o is not None], weights)
    rules = Secant()
    rules.scan_heads_by_step(*then[:2], A, *then[2:])
    rules.comparing = True
    want, got = slopes(rules.scan_heads_by_step), slopes(lambda *args: scan_heads_secant(*args, then))
    for x,y in zip(got, want): assert (x - y).abs().max() <= 1e-12*y.abs().max()

def test_mamba2_keeps_what_the_gradient_keeps():
    "mamba2_secant_memory: bytes kept for the backward pass"
    model, task = Mamba.tiny(kind=2, num_hidden_layers=2, state_size=64, head_dim=32, num_heads=4, hidden_size=64).requires_grad_(False), toy()
    kept = {}
    for method in ('gradient', 'secant'):
        seen = {}
        def pack(x):
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x): attribute(model, task, '*.resid', method)
        kept[method] = sum(seen.values())
    assert kept['secant'] < 1.5*kept['gradient']

def test_memory_is_told_before_it_is_taken(monkeypatch):
    "mamba2_secant_memory: one sentence with bytes and what to do"
    import mamba_interp.model.memory as model_page
    monkeypatch.setattr(model_page, 'free_memory', lambda device='cpu': 2**12)
    one_sentence(lambda: attribute(MODELS[2], TASK), 'bytes', 'batch', 'GiB')
    one_sentence(lambda: attribute(MODELS[1], TASK, '*.state', 'gradient'), 'bytes', 'batch')
    one_sentence(lambda: EdgePatcher(MODELS[1], Graph.of(MODELS[1]), TASK), 'bytes', 'batch')

@pytest.mark.parametrize('kind', (1, 2))
def test_means_leave_out_what_fills_up(kind):
    "mean_over_padding"
    model, gone = MODELS[kind], torch.arange(8) > ENDS[:, None]
    filled = [Task(TASK.clean.masked_fill(gone, o), TASK.corrupt.masked_fill(gone, o), TASK.right, TASK.wrong, TASK.positions) for o in (0, 17)]
    for labels in (None, 8, 'spans'):
        values = []
        for task in filled:
            where = spans(task, ('key', 'end')) if labels == 'spans' else None
            graph = Graph.of(model, where or labels)
            share = torch.rand(len(graph), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
            values += [EdgePatcher(model, graph, task, where, 'mean', batch=o).metric(share) for o in (None, 2)]
        for o in values[1:]: assert torch.allclose(o, values[0], rtol=0, atol=1e-10)

def test_batches_of_prompts_change_nothing():
    "mamba2_secant_memory: EdgePatcher's batch, with slopes too"
    model = MODELS[2]
    graph = Graph.of(model, 8)
    whole, few = EdgePatcher(model, graph, TASK), EdgePatcher(model, graph, TASK, batch=2)
    mask = torch.rand(len(graph), generator=torch.Generator().manual_seed(0)) < .5
    assert torch.allclose(whole.metric(mask), few.metric(mask), rtol=0, atol=1e-10)
    assert torch.allclose(whole.ablated, few.ablated, rtol=0, atol=1e-10)
    slopes = [torch.autograd.grad(o.metric(s).sum(), s)[0] for o in (whole, few) for s in [torch.zeros(len(graph), dtype=torch.float64, requires_grad=True)]]
    assert torch.allclose(*slopes, rtol=0, atol=1e-9)
    assert torch.allclose(TASK.logit_diff(model(TASK.clean, few.taps(mask))), whole.metric(mask), rtol=0, atol=1e-9)

@pytest.mark.parametrize('dtype', (torch.bfloat16, torch.float16))
@pytest.mark.parametrize('kind', (1, 2))
def test_half_precision_gives_nearly_the_same(dtype, kind):
    "half_precision_scores"
    model = Mamba.tiny(kind=kind, seed=3).requires_grad_(False)
    half = Mamba.tiny(kind=kind, seed=3).requires_grad_(False).to(dtype)
    for method in ('secant', 'gradient', 'ig', 'frozen'):
        want, got = (attribute(m, TASK, '*.block_out', method) for m in (model, half))
        for s in want: assert got[s].dtype == torch.float32
        a, b = (torch.stack([*o.values()]) for o in (want, got))
        assert (a - b).norm() < .06*a.norm()

def test_autocast_and_inference_mode_change_nothing():
    "half_precision_scores: around the call"
    model = Mamba.tiny(seed=3).requires_grad_(False)
    want = attribute(model, TASK)
    with torch.autocast('cpu', dtype=torch.bfloat16): cast = attribute(model, TASK)
    with torch.inference_mode():
        inference, task = attribute(model, TASK), toy()
        made_there = attribute(model, task)
        for method in ('ig', 'gradient', 'frozen'): attribute(model, task, method=method)
        integrate_activations(model, task, '1.resid')
    for s in want:
        for o in (cast, inference, made_there): assert torch.allclose(o[s], want[s], rtol=0, atol=1e-7)
    with torch.inference_mode(): born = Mamba.tiny()
    one_sentence(lambda: attribute(born, TASK), 'inference_mode')

def adapters():
    small = dict(vocab_size=61, hidden_size=24, num_hidden_layers=2)
    yield 'falcon', transformers.FalconMambaForCausalLM(FalconMambaConfig(**small, state_size=5))
    yield 'mamba', transformers.MambaForCausalLM(MambaConfig(**small, state_size=5))

def test_an_adapter_is_told_what_it_lacks():
    "adapter_circuits"
    for name, inner in adapters():
        adapter = Adapter(inner.eval())
        for call in (lambda: attribute(adapter, TASK), lambda: Graph.of(adapter), lambda: EdgePatcher(adapter, Graph.of(MODELS[1]), TASK),
                     lambda: path_patch(adapter, TASK, ['0.block_out -> final_resid']), lambda: path_effects(adapter, TASK), lambda: integrate_activations(adapter, TASK),
                     lambda: cut_sums(adapter, TASK, {}), lambda: calibrate(adapter, TASK, {})):
            one_sentence(call, 'needs a `Mamba`', 'Mamba.load' if name == 'mamba' else 'patch_effects')
    one_sentence(lambda: Graph.of(BambaConfig()), 'bamba')
    for odd in (None, 'house', torch.nn.Linear(2, 2), dict(), MODELS[1].lm_head): one_sentence(lambda: Graph.of(odd), 'needs a `Mamba`')

def test_a_falcon_mamba_has_a_graph():
    "Its norms on Δ, B and C are inside the edges: all patched give the corrupt run, none the clean one, and scores add up."
    model = Mamba.tiny(kind='falcon_mamba').double().requires_grad_(False)
    clean, corrupt = torch.randint(1, 61, (2, 4, 6), generator=torch.Generator().manual_seed(0))
    task = Task(clean, corrupt, clean[:, 0], corrupt[:, 0], dict(end=torch.full((4,), 5)))
    patcher = EdgePatcher(model, Graph.of(model, 6), task)
    every = torch.ones(len(patcher.graph), dtype=torch.bool)
    torch.testing.assert_close(patcher.metric(every), task.logit_diff(task.run(model, which='corrupt')), rtol=0, atol=1e-10)
    torch.testing.assert_close(patcher.metric(~every), task.logit_diff(task.run(model)), rtol=0, atol=1e-10)
    assert abs(attribute(model, task, '*.resid').residual) < 1e-10

def test_uninformative_metrics_are_named():
    "uninformative_metric"
    model, graph = MODELS[1], Graph.of(MODELS[1])
    def nan(task, logits): return torch.where(task.right == TASK.right[2], float('nan'), 1.)*task.logit_diff(logits)
    def infinite(task, logits): return task.logit_diff(logits)/(task.right != TASK.right[1])
    for batch in (1, 2, 32):
        one_sentence(lambda: attribute(model, TASK, metric=nan, batch=batch), 'nan', 'prompt 2')
        one_sentence(lambda: attribute(model, TASK, metric=infinite, batch=batch), 'inf', 'prompt 1')
    one_sentence(lambda: EdgePatcher(model, graph, TASK, metric=nan).plain, 'nan', 'prompt 2')
    one_sentence(lambda: EdgePatcher(model, graph, TASK, metric=nan, batch=2).plain, 'nan', 'prompt 2')
    same = Task(TASK.clean, TASK.clean, TASK.right, TASK.wrong, TASK.positions)
    one_sentence(lambda: attribute(model, same), 'same')
    one_sentence(lambda: attribute(model, TASK, metric=lambda t,o: t.logit_diff(o).clamp(max=-1000)), 'same')
    one_sentence(lambda: attribute(model, TASK[:0]), 'no prompts')
    one_sentence(lambda: EdgePatcher(model, graph, TASK[:0]), 'no prompts')

MODEL = MODELS[1]
MALFORMED = {
    'method': (lambda: attribute(MODEL, TASK, method='secants'), "'secant'"), 'method number': (lambda: attribute(MODEL, TASK, method=3), "'secant'"),
    'method none': (lambda: attribute(MODEL, TASK, method=None), "'secant'"), 'steps': (lambda: attribute(MODEL, TASK, method='ig', steps=2.5), 'steps is 2.5'),
    'steps none': (lambda: attribute(MODEL, TASK, steps=None), 'steps'), 'steps huge': (lambda: nodes(10**9), 'steps'), 'how': (lambda: attribute(MODEL, TASK, method='ig', how='mid'), "'midpoint'"),
    'batch': (lambda: attribute(MODEL, TASK, batch=-1), 'batch is -1'), 'batch true': (lambda: attribute(MODEL, TASK, batch=True), 'batch'), 'base': (lambda: attribute(MODEL, TASK, base=None), "'corrupt'"),
    'task': (lambda: attribute(MODEL, TASK.clean), '`Task`'), 'model': (lambda: attribute(None, TASK), '`Mamba`'), 'site': (lambda: attribute(MODEL, TASK, '0.residual'), 'resid'),
    'site block': (lambda: attribute(MODEL, TASK, '7.resid'), '7.resid'), 'state token': (lambda: attribute(MODEL, TASK, '0.state@8'), '0 to 7'),
    'metric': (lambda: attribute(MODEL, TASK, metric=1.), 'metric'), 'metric shape': (lambda: attribute(MODEL, TASK, metric=lambda t,o: o.sum()), 'one number per prompt'),
    'plain': (lambda: Secant('norms'), "'norm'"), 'plain number': (lambda: Secant([1]), "'norm'"), 'effects': (lambda: cut_sums(MODEL, TASK, [1]), 'dict'), 'effects empty': (lambda: cut_sums(MODEL, TASK, {}), 'nothing'),
    'effects text': (lambda: cut_sums(MODEL, TASK, {'embed': torch.zeros(5, 8)}), '`Site`'), 'effects shape': (lambda: cut_sums(MODEL, TASK, {Site('embed'): torch.zeros(5, 9)}), '(5, 8)'),
    'calibrate top': (lambda: calibrate(MODEL, TASK, {Site('embed'): torch.zeros(5, 8)}, top=-1), 'top is -1'), 'calibrate others': (lambda: calibrate(MODEL, TASK, {Site('embed'): torch.zeros(5, 8)}, others='x'), 'others'),
    'many blocks': (lambda: Graph('mamba', 10**5, 4), '2,097,152'), 'very many': (lambda: Graph('mamba', 10**30, 4), '2,097,152'), 'many labels': (lambda: Graph('mamba', 1, 4, tuple(range(10**5))), '2,097,152'),
    'many tokens': (lambda: Graph.of(MODEL, 10**12), 'tokens'), 'no blocks': (lambda: Graph('mamba', 0, 4), 'n_layers is 0'), 'text blocks': (lambda: Graph('mamba', '3', 4), 'n_layers'),
    'width': (lambda: Graph('mamba', 3, -4), 'width is -4'), 'width huge': (lambda: Graph('mamba', 3, 10**12, (0, 1)), 'from 1 to 1000'), 'many spans': (lambda: Graph('mamba', 1, 4, tuple(map(str, range(10**5))), ('time',), pairs=()), '1,000'), 'type': (lambda: Graph('mamba3', 3, 4), "'mamba2'"), 'type none': (lambda: Graph(None, 3, 4), "'mamba2'"), 'kinds': (lambda: Graph('mamba', 3, 4, kinds=('deep',)), 'depth'),
    'kinds none': (lambda: Graph('mamba', 3, 4, kinds=()), 'at least one kind'), 'kinds number': (lambda: Graph.of(MODEL, kinds=3), 'no kind of edge'), 'split': (lambda: Graph.of(MODEL, split='no'), 'split'),
    'labels': (lambda: Graph('mamba', 3, 4, ('a', 'a'), pairs=()), 'different names'), 'labels mixed': (lambda: Graph('mamba', 3, 4, ('a', 1), pairs=()), 'different names'), 'labels gap': (lambda: Graph('mamba', 3, 4, (0, 2)), '0, 1'),
    'labels text': (lambda: Graph('mamba', 3, 4, 'ab'), 'labels'), 'pairs': (lambda: Graph('mamba', 3, 4, ('a', 'b'), pairs=(('a', 'c'),)), 'pairs'), 'pairs missing': (lambda: Graph('mamba', 3, 4, ('a', 'b')), 'pairs'),
    'pairs without names': (lambda: Graph('mamba', 3, 4, None, pairs=(('a', 'b'),)), 'pairs'), 'tokens zero': (lambda: Graph.of(MODEL, 0), 'tokens is 0'), 'tokens half': (lambda: Graph.of(MODEL, 2.5), 'tokens is 2.5'),
    'tokens text': (lambda: Graph.of(MODEL, 'S1'), 'tokens should be'), 'edge': (lambda: Edge.parse('embed'), 'no edge'), 'edge none': (lambda: Edge.parse(None), 'no edge'), 'edge number': (lambda: Graph.of(MODEL).index(3), 'no edge'),
    'edge parts': (lambda: Graph.of(MODEL).index(Edge('embed', '0.conv')), 'no edge'), 'edge label': (lambda: Graph.of(MODEL, 8).index('embed -> 0.read_x @ 8'), 'not in this graph'),
    'edge minus': (lambda: Graph.of(MODEL, 8).index('embed -> 0.read_x @ -1'), 'not in this graph'), 'mask': (lambda: Graph.of(MODEL).mask(5), 'list of'), 'where kind': (lambda: Graph.of(MODEL).where('deep'), "'depth'"),
    'where at': (lambda: Graph.of(MODEL, 8).where(at=-1), 'at is -1'), 'where token': (lambda: Graph.of(MODEL).where(at=1), 'summed over tokens'), 'where lag': (lambda: Graph.of(MODEL).where(lag=4), 'lag is 4'),
    'where other': (lambda: Graph.of(MODEL).where(token=1), "'since'"), 'where src': (lambda: Graph.of(MODEL).where(src='0.q'), '0.'), 'spans name': (lambda: spans(TASK, ('S3',)), 'no position'),
    'spans twice': (lambda: spans(TASK, ('end', 'end')), 'different names'), 'spans none': (lambda: spans(TASK, ()), 'different names'), 'spans mask': (lambda: Spans(('a',), torch.ones(1, 3, 1)), 'True and False'),
    'spans labels': (lambda: Spans(('a', 'a'), torch.ones(1, 3, 2).bool()), 'different names'), 'spans end': (lambda: Spans(('a',), torch.ones(1, 3, 1).bool(), torch.tensor([3])), 'end is 3'),
    'patcher graph': (lambda: EdgePatcher(MODEL, None, TASK), '`Graph`'), 'patcher other graph': (lambda: EdgePatcher(MODEL, Graph('mamba', 3, 4), TASK), 'another model'), 'patcher task': (lambda: EdgePatcher(MODEL, Graph.of(MODEL), None), '`Task`'),
    'patcher spans': (lambda: EdgePatcher(MODEL, Graph.of(MODEL), TASK, spans='end'), '`Spans`'), 'patcher batch': (lambda: EdgePatcher(MODEL, Graph.of(MODEL), TASK, batch=2.), 'batch'), 'patcher how': (lambda: EdgePatcher(MODEL, Graph.of(MODEL), TASK, how=None), "'resample'"),
    'path': (lambda: path_patch(MODEL, TASK, None), 'path'), 'path number': (lambda: path_patch(MODEL, TASK, 3), 'path'), 'path empty': (lambda: path_patch(MODEL, TASK, []), 'final_resid'), 'path token': (lambda: path_patch(MODEL, TASK, ['embed -> final_resid @ 9']), '9'),
    'path spans': (lambda: path_patch(MODEL, TASK, ['embed -> final_resid @ end'], spans=3), '`Spans`'), 'path metric': (lambda: path_patch(MODEL, TASK, ['embed -> final_resid'], metric='kl'), 'metric'), 'effects to': (lambda: path_effects(MODEL, TASK, '0.conv'), 'reads no residual'),
}

@pytest.mark.parametrize('name', MALFORMED)
def test_what_cannot_be_meant_is_refused(name):
    "uninformative_metric, adapter_circuits and their neighbours: arguments"
    call, word = MALFORMED[name]
    one_sentence(call, word)

@pytest.mark.parametrize('patched', (None, 'all', [True], float('nan'), torch.ones(3), torch.full((1,), 1j), object()))
def test_a_mask_is_one_value_for_each_edge(patched):
    "arguments of EdgePatcher.metric"
    patcher = EdgePatcher(MODEL, Graph.of(MODEL), TASK)
    one_sentence(lambda: patcher.metric(patched), 'edges')
    one_sentence(lambda: patcher.metric(torch.full((len(patcher.graph),), float('nan'))), '0 to 1')

def test_counting_edges_is_building_them():
    "enormous graphs: the count that is asked before anything is built"
    named = spans(TASK, ('key', 'end'))
    for kind, model in MODELS.items():
        for tokens in (None, 1, 3, 8, named):
            for split in (True, False):
                for kinds in (('depth', 'lag', 'receiver', 'gate', 'time'), ('lag', 'time')):
                    graph = Graph.of(model, tokens, kinds, split)
                    assert len(graph) == len(graph.edges) == 1 + max(int(o.max()) for o in graph.cells.values()) <= LARGEST
    many = Spans(tuple(f'span {i}' for i in range(300)), torch.eye(300).bool()[None])
    assert len(Graph.of(model, many, 'time')) == 2*300*301//2

def test_texts_and_options_of_edges():
    "adapter_circuits: digits of other scripts, options that nobody knows, and names that are none."
    graph = Graph.of(MODELS[1], 8)
    for text in ('0.x -> 0.conv lag ² @ 3', '0.x -> 0.conv lag 0 @ ²', 'embed -> 0.read_x @ ٣'): one_sentence(lambda: graph.index(text))
    one_sentence(lambda: path_effects(MODELS[1], TASK, then=3), 'then')
    one_sentence(lambda: path_effects(MODELS[1], TASK, bas='clean'), "'bas'", "did you mean 'base'")
    for names in (3, None): one_sentence(lambda: spans(TASK, names), 'different names')
    one_sentence(lambda: spans(None), 'Task')

@pytest.mark.parametrize('label', ('²', '٣', '½', '12345678901', '๗'))
def test_labels_that_are_numbers_of_another_kind(label):
    "adapter_circuits: an edge's token is written in the digits 0 to 9, or is the name of a span."
    for text in (f'embed -> 0.read_x @ {label}', f'0.state @ {label} -> 0.y @ 3', f'0.x -> 0.conv lag 1 @ {label}'):
        one_sentence(lambda: Edge.parse(text), 'is no edge', label)
    assert Edge.parse('embed -> 0.read_x @ S²').at == 'S²'

@pytest.mark.parametrize('call', (attribute, integrate_activations, patch_effects, site_effects))
def test_no_sites(call):
    "uninformative_metric: an empty list of sites is refused before the model runs."
    class Still(Mamba):
        def _run(self, *args, **options): raise AssertionError('the model ran')
    still = Still(MODEL.config)
    for none in ([], ()): one_sentence(lambda: call(still, TASK, none), 'sites is', 'at least one site')
    if call is patch_effects:
        for at in ([], {Site('embed'): []}): one_sentence(lambda: call(still, TASK, 'embed', at=at), 'at names no token')
        one_sentence(lambda: call(still, TASK, '0.state@5', at=[3]), 'at names no token', '0.state@5')
