"Tasks, metrics, intervals: what cannot be meant is refused in one sentence, and what looked right is right."
import random
from importlib.resources import files

import numpy as np, pytest, torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from mamba_interp import report as st, tasks, training
from mamba_interp.circuits import contrast, interval, patch_effects, site_effects, task_metric
from mamba_interp.model import Mamba, Site
from mamba_interp.tasks import CORRUPTIONS, FIRST_MENTION, Prompt, Task, Words, from_prompts, ioi, slots

V, SITE = 61, Site('resid', 1)

@pytest.fixture(scope='module')
def model(): return Mamba.tiny(seed=3).double().requires_grad_(False)

@pytest.fixture(scope='module')
def house(): return Tokenizer.from_file(str(files('mamba_interp')/'house'/'tokenizer.json'))

def toy(b=6, t=8, **more):
    gen = torch.Generator().manual_seed(1)
    clean = torch.randint(0, V, (b, t), generator=gen)
    corrupt = clean.clone()
    corrupt[:, 3] = (clean[:, 3] + 5) % V
    right = torch.randint(0, V, (b,), generator=gen)
    return Task(clean, corrupt, **{**dict(right=right, wrong=(right + 3) % V, positions=dict(end=torch.full((b,), t - 1))), **more})

def refused(f, *words):
    "The one sentence with which `f` is refused."
    with pytest.raises((ValueError, TypeError)) as e: f()
    said = str(e.value)
    assert '\n' not in said and len(said) < 500, said
    for o in words: assert o in said, (o, said)

TEMPLATES = {
    'The [CITY] of [N] is': ('the slot [CITY]',), 'The capital of [n] is': ('did you mean [N]',), 'From [N] to [N] is': ('2 slots [N]', 'got 2'),
    'From it is': ('0 slots [N]',), 'He saw [] and [N] in': ('the slot []',), 'See [N in': ('template',),
    'To [N] and ': ('ends in a space',), '': ('a template is',), '   ': ('a template is',), 'The [place] of [N] is': ('did you mean [PLACE]',)}

@pytest.mark.parametrize('template', TEMPLATES)
def test_a_slip_in_a_template_is_named(house, template):
    "from_prompts_errors: the sentence names the template and the slot."
    refused(lambda: from_prompts([Prompt(template, ('Mary', 'John'), ('Lucy', 'Kate'), 'store', 'apple')], house), *TEMPLATES[template], repr(template))

def test_a_word_that_merges_with_what_follows_is_named(house):
    "from_prompts_errors: a suffix that makes another token of the word."
    refused(lambda: from_prompts([Prompt('I saw [N]ie in', ('Ann', 'John'), ('Ann', 'Kate'), 'store', 'apple')], house), "'I saw [N]ie in'", 'slot [N]')

PROMPTS = dict(
    none=([], 'empty'), text=(['Then, [N]'], 'hold a str'), names=([Prompt('To [N] and', 'Mary', ('Lucy', 'Kate'), 'store', 'apple')], 'expected names'),
    number=([Prompt('To [N] and', (3, 'John'), ('Lucy', 'Kate'), 'store', 'apple')], 'expected names'), place=([Prompt('At the [PLACE] [N] and', ('Mary', 'John'), ('Lucy', 'Kate'), None, 'apple')], 'place is None'),
    rare=([Prompt('To [N] and', ('Zebulon', 'John'), ('Lucy', 'Kate'), 'store', 'apple')], 'Zebulon'), answer=([Prompt('To [N] and', ('Mary', 'Zebulon'), ('Lucy', 'Kate'), 'store', 'apple')], 'Zebulon'))

@pytest.mark.parametrize('kind', PROMPTS)
def test_prompts_that_do_not_fit_are_refused(house, kind):
    "from_prompts_errors: other malformed task definitions."
    prompts, word = PROMPTS[kind]
    refused(lambda: from_prompts(prompts, house), word)

@pytest.mark.parametrize('template', ['Then, [N] and', 'So  the [N] and', 'At the [PLACE], [N] had a [OBJECT], and', 'He said:\n The [N] and', "It is [N]'s, and"])
def test_ids_are_those_of_the_whole_text(house, template):
    "from_prompts_errors: a filled prompt is what the tokenizer makes of the text."
    task = from_prompts([Prompt(template, ('Mary', 'John'), ('Lucy', 'Kate'), 'store', 'apple')], house)
    text = template.replace('[N]', 'Mary').replace('[PLACE]', 'store').replace('[OBJECT]', 'apple')
    assert task.clean[0, 1:].tolist() == house.encode(text).ids
    assert house.decode([task.clean[0, task.positions['N1'][0]].item()]).strip() == 'Mary'

TEXT = 'Then, Mary, John and Ann went to the store. Mary and John gave an apple to Mary John, Ann.'
def prefixed(scheme, fast):
    inner = Tokenizer(models.BPE(unk_token='<unk>'))
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace('▁', scheme), pre_tokenizers.Punctuation()])
    inner.train_from_iterator([TEXT]*50, trainers.BpeTrainer(vocab_size=500, special_tokens=['<unk>', '<s>', '<|endoftext|>'], min_frequency=1, show_progress=False))
    if not fast: return inner, inner
    from transformers import PreTrainedTokenizerFast
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token='<s>', unk_token='<unk>'), inner

@pytest.mark.parametrize('fast', [True, False])
@pytest.mark.parametrize('scheme', ['always', 'first', 'never'])
def test_a_tokenizer_with_a_space_before_every_text(scheme, fast):
    "prefix_space_slots: no second space mark after a slot, in prompts and in `slots`."
    tokenizer, inner = prefixed(scheme, fast)
    template = 'Then, [N], [N] went to the [PLACE]. [N] gave an [OBJECT] to'
    task = from_prompts([Prompt(template, ('Mary', 'John', 'Mary', 'Ann'), ('John', 'Mary', 'John', 'Ann'), 'store', 'apple')], tokenizer)
    right = inner.encode('Then, Mary, John went to the store. Mary gave an apple to').ids
    assert task.clean[0, 1:].tolist() == right and task.right.tolist() == inner.encode('to Ann').ids[-1:]
    fill = dict(N1='Mary', N2='John', N3='Mary', PLACE='store', OBJECT='apple')
    assert [o if isinstance(o, int) else inner.encode(f'to {fill[o]}').ids[-1] for o in slots(template, tokenizer)] == right
    assert slots('[N] gave', inner)[0] == 'N1' if scheme != 'never' else True

CALLS = dict(
    one_name=(dict(words=Words(names=('Mary',)*4)), "'Mary' twice"), few_names=(dict(words=Words(names=('Mary', 'John', 'Lucy'))), '3 names are too few'), no_places=(dict(words=Words(places=())), 'places is empty'),
    text_for_words=(dict(words=Words(objects='apple')), 'expected a list'), plain_tuple=(dict(words=('Mary',)), 'expected `Words'), no_templates=(dict(templates=()), 'templates is empty'), twice=(dict(templates=[tasks.THREE_NAMES[0]]*2), 'twice'),
    no_corruptions=(dict(corruptions=()), 'corruptions is empty'), one_side=(dict(corruptions=('ABCABC',)), 'clean and corrupt'), small=(dict(corruptions=('abcabc abdabd',)), 'should be letters'),
    short=(dict(corruptions=('ABBA ABAB',)), 'as many names'), n=(dict(n=0), 'n is 0'), fraction=(dict(n=2.5), 'n is 2.5'), seed=(dict(seed='x'), "seed is 'x'"), nothing=(dict(templates=[None]), 'templates hold None'))

@pytest.mark.parametrize('kind', CALLS)
def test_a_bad_request_for_ioi_is_refused(house, kind):
    "Malformed tasks: no templates, letters, no places, one name four times, duplicates."
    options, word = CALLS[kind]
    refused(lambda: ioi(house, **{**dict(n=2), **options}), word)

def test_more_letters_and_one_template_as_text_work(house):
    "Malformed tasks: what can be meant is taken."
    task = ioi(house, 2, templates=tasks.THREE_NAMES[0], corruptions='ABCABC EFGEFG')
    assert task.clean[0, task.positions['N1'][0]] != task.corrupt[0, task.positions['N1'][0]]
    refused(lambda: ioi(None, 2), 'tokenizer')

def test_random_tasks_refuse_what_cannot_be_meant(house):
    "Malformed tasks: pools and sizes."
    refused(lambda: tasks.copying(7), 'expected a tokenizer')
    refused(lambda: tasks.copying([]), 'empty')
    refused(lambda: tasks.copying([0, 1, 2, 2, 3, 4, 5, 6, 7, 8]), '2 twice')
    refused(lambda: tasks.copying(range(30), length=0), 'length is 0')
    refused(lambda: tasks.induction(range(30), n=-1), 'n is -1')
    refused(lambda: tasks.key_value(range(30), pairs=2.), 'pairs is 2.0')
    refused(lambda: tasks.equal_length([], house), 'empty')

FIELDS = dict(
    list=(dict(right=[1]*6), 'right is a list'), floats=(dict(right=torch.rand(6)), 'torch.float32'), rows=(dict(right=torch.ones(5).long()), 'there are 6 prompts'), negative=(dict(wrong=torch.tensor([1, 2, 3, 4, 5, -1])), 'wrong of prompt 5 has -1'),
    no_end=(dict(positions={}), "no 'end'"), end=(dict(positions=dict(end=torch.full((6,), 8))), "positions['end'] is 8"), deep=(dict(positions=dict(end=torch.full((6,), -9))), "positions['end'] is -9"), none=(dict(positions=None), 'positions is a NoneType'),
    shape=(dict(positions=dict(end=torch.zeros(6, 1).long())), 'expected (b)'), twice=(dict(right=torch.tensor([[1, 1]]*6), wrong=torch.full((6,), 9)), 'answer 1 twice'), both=(dict(right=torch.tensor([[1, 9]]*6), wrong=torch.full((6,), 9)), 'answer 9 twice'), first=(dict(right=torch.tensor([[-1, 2]]*6)), 'has -1'))

@pytest.mark.parametrize('kind', FIELDS)
def test_a_task_that_does_not_fit_together_is_refused(kind):
    "Malformed tasks: answers or `end` out of range, shapes, types."
    options, word = FIELDS[kind]
    refused(lambda: toy(**options), word)

def test_answers_outside_the_vocabulary_are_named(model):
    "Malformed tasks: an answer that the model lacks."
    task = toy(right=torch.tensor([1, 2, 3, 99, 5, 6]))
    refused(lambda: task.logit_diff(model(task.clean)), 'prompt 3 has the answer 99')
    refused(lambda: task.logit_diff(model(task.clean)[:, :5]), 'predicted at token 7')
    refused(lambda: task.logit_diff('logits'), 'a str')

def test_negative_positions_count_from_the_end(model):
    "Token positions: negative ones mean the same in every call; too large ones are refused."
    task = toy()
    back = toy(positions=dict(end=torch.full((6,), -1)))
    assert torch.equal(back.positions['end'], task.positions['end'])
    whole = patch_effects(model, task, SITE)[SITE]
    for at in ([-1, 3], [3, 7], torch.tensor([3, -1])):
        found = patch_effects(model, task, SITE, at=at)[SITE]
        assert torch.equal(found[:, [3, 7]], whole[:, [3, 7]]) and (found[:, [0, 1, 2, 4, 5, 6]] == 0).all()
    assert torch.equal(patch_effects(model, task, SITE, at={'1.resid': -1})[SITE][:, 7], whole[:, 7])
    for at in ([8], -9, [0, 99], {SITE: [8]}, [True], [1.5], '3'): refused(lambda: patch_effects(model, task, SITE, at=at))
    refused(lambda: patch_effects(model, task, '*.resid', at={SITE: [1]}), 'but not for')

def test_several_answers_in_every_score(model):
    "several_answers: the metric, accuracy, top and probability take all of them, and a part of the task knows its own."
    many = torch.stack([toy().right, (toy().right + 9) % V, torch.full((6,), -1)], 1)
    many[2, 2] = (toy().right[2] + 20) % V
    task = toy(right=many)
    logits = model(task.clean, at=task.positions['end'])
    p = logits.softmax(-1)
    mass = torch.stack([p[i, [o for o in row if o >= 0]].sum() for i,row in enumerate(many.tolist())])
    assert torch.allclose(task.probability(logits), mass)
    assert torch.allclose(task.logit_diff(logits), (mass/p.gather(1, task.wrong[:, None])[:, 0]).log())
    assert torch.equal(task.accuracy(logits), (task.logit_diff(logits) > 0).float())
    best = torch.zeros(6, V)
    best[torch.arange(6), many[:, 1]] = 1
    assert task.top(best).eq(1).all() and toy().top(best).eq(0).all()
    rows = torch.tensor([4, 1, 5])
    assert torch.equal(task[rows].logit_diff(logits[rows]), task.logit_diff(logits)[rows]) and torch.equal(task[rows][1:].index, rows[1:])
    fast, slow = (patch_effects(model, task, SITE, restart=o)[SITE] for o in (True, False))
    assert torch.allclose(fast, slow) and fast.abs().max() > 0
    assert torch.equal(toy(right=many[:, 0], also_right=many[:, 1:]).logit_diff(logits), task.logit_diff(logits))

def test_a_metric_that_does_not_know_its_prompts_is_refused(model):
    "several_answers: closures over the whole task end in a sentence, not in wrong numbers; `index` is the way."
    task = toy()
    many = torch.stack([task.right, (task.right + 9) % V, (task.right + 20) % V], 1)
    diff = lambda ids: lambda t, logits: logits.gather(1, ids(t, logits)).logsumexp(1) - t.answers(logits)[1]
    want = patch_effects(model, toy(right=many), SITE)[SITE]
    refused(lambda: patch_effects(model, task, SITE, metric=diff(lambda t, logits: many)), 'task.index')
    refused(lambda: patch_effects(model, task, SITE, metric=diff(lambda t, logits: many[:len(logits)])), 'task.index')
    refused(lambda: patch_effects(model, task, SITE, metric=lambda t, logits: t.logit_diff(logits) - t.logit_diff(logits).mean()), 'alone')
    assert torch.allclose(patch_effects(model, task, SITE, metric=diff(lambda t, logits: many[t.index]))[SITE], want)
    clean = model(task.clean, at=task.positions['end']).log_softmax(-1)
    kl = lambda t, logits: (clean[t.index].exp()*(clean[t.index] - logits.log_softmax(-1))).sum(-1)
    assert patch_effects(model, task, SITE, metric=kl)[SITE].max() > 0

def test_uninformative_metrics_are_refused_where_they_appear(model):
    "uninformative_metric: NaN names the prompt; a constant metric and equal prompts are told."
    task = toy()
    nan = lambda t, logits: torch.where(t.index == 2, float('nan'), 1.)*t.logit_diff(logits)
    for f in (patch_effects, site_effects): refused(lambda: f(model, task, SITE, metric=nan), 'nan on prompt 2')
    refused(lambda: patch_effects(model, task[3:], SITE, metric=lambda t, logits: t.logit_diff(logits)/(t.index != 4)), 'prompt 4')
    refused(lambda: patch_effects(model, task, SITE, metric=lambda t, logits: t.logit_diff(logits).clamp(max=-100)), 'the same on the clean and on the corrupt run', '-100')
    same = Task(task.clean, task.clean, task.right, task.wrong, task.positions)
    refused(lambda: patch_effects(model, same, SITE), 'the same tokens in each of 6 prompts')
    assert patch_effects(model, same, SITE, how='zero')[SITE].abs().max() > 0
    for bad in (lambda t, logits: 1., lambda t, logits: logits, lambda t, logits: t.right, lambda t, logits: logits[:, 99], lambda t, logits: t.nothing):
        refused(lambda: patch_effects(model, task, SITE, metric=bad))
    refused(lambda: patch_effects(model, task[:0], SITE), 'no prompts')
    refused(lambda: interval(nan(task, model(task.clean, at=task.positions['end']))), 'row 2 has nan')
    refused(lambda: contrast(task, torch.ones(6), torch.ones(6)), 'nothing can be learned')

def test_nan_and_half_precision_in_task_methods(model):
    "uninformative_metric, half precision: NaN is neither right nor wrong; bfloat16 logits are compared in float32."
    task = toy()
    logits = model(task.clean, at=task.positions['end']).float()
    bad = logits.clone()
    bad[4, 7] = float('nan')
    for f in (task.accuracy, task.top): refused(lambda: f(bad), 'prompt 4')
    half = logits.bfloat16()
    for f in (task.logit_diff, task.probability): assert f(half).dtype == torch.float32 and torch.equal(f(half), f(half.float()))
    refused(lambda: task.with_baselines(lambda tokens, at: logits*float('nan')), 'clean prompt 0')
    refused(lambda: task.with_baselines(lambda tokens, at: logits).normalised(logits), 'NLD is not defined')
    refused(lambda: task[:0].with_baselines(model), 'no prompts')
    refused(lambda: task.with_baselines(model, batch=0), 'batch is 0')

def test_effects_of_padding_do_not_enter_the_mean(model):
    "mean_over_padding: what fills up a shorter prompt does not matter."
    task = toy(positions=dict(end=torch.tensor([7, 5, 7, 4, 7, 6])))
    filled = task.clean.clone(), task.corrupt.clone()
    for tokens in filled: tokens[torch.arange(8) > task.positions['end'][:, None]] = 0
    other = Task(*filled, task.right, task.wrong, task.positions)
    for how in ('mean', 'zero', 'resample'):
        a, b = (patch_effects(model, o, ['embed', '*.resid', '1.u'], how=how) for o in (task, other))
        for site in a: assert torch.allclose(a[site], b[site]), (how, site)

def test_strict_accuracy(house):
    "02_accuracy_with_an_absent_answer: ahead of every name of the prompt, whether or not the wrong answer is among them."
    task = ioi(house, 5, 31, templates=tasks.THREE_NAMES[:1])
    logits = torch.zeros(len(task), house.get_vocab_size())
    logits.scatter_(1, task.right[:, None], 1.)
    assert task.strict(logits).eq(1).all()
    absent = ~(task.clean == task.wrong[:, None]).any(1)
    assert absent.float().mean() == .6
    third = torch.stack([task.clean.gather(1, task.positions[f'N{i}'][:, None])[:, 0] for i in (1, 2, 3)], 1)
    ahead = torch.stack([row[row != r][0] for row,r in zip(third, task.right)])
    logits.scatter_(1, ahead[:, None], 2.)
    assert task.strict(logits).eq(0).all() and task.accuracy(logits)[absent].eq(1).all()
    refused(lambda: toy().strict(torch.zeros(6, V)), 'neither')
    given = toy(candidates=torch.tensor([[7, -1]]*6))
    assert given.strict(torch.nn.functional.one_hot(given.right, V).float()).eq(1).all()

def test_the_sixth_corruption_changes_a_first_mention_only(house):
    "07_detector_is_invisible: a corruption after which a name is no longer repeated."
    task = ioi(house, 6, templates=tasks.THREE_NAMES[:1], corruptions=FIRST_MENTION)
    assert torch.equal(tasks.changed(task), task.positions['N1']) and len(CORRUPTIONS) == 5
    clean = task[::2]
    assert torch.equal(clean.wrong, clean.clean.gather(1, clean.positions['N1'][:, None])[:, 0])

@pytest.mark.parametrize('n', [5, 10, 20, 25, 200])
def test_intervals_hold_what_they_promise(n):
    "08_bootstrap_cover: .95 ± .02 for means (with the simulation's own doubt), at least .95 for shares."
    rng = np.random.default_rng(n)
    for draw, truth in ((rng.normal(size=(n, 1500)), 0), (rng.exponential(size=(n, 1500)), 1)):
        e = interval(draw)
        assert .918 < ((e.low <= truth) & (truth <= e.high)).mean() < .982
    for p in (.5, .9, .97, .99):
        e = interval((rng.random((n, 1500)) < p)*1.)
        assert ((e.low <= p) & (p <= e.high)).mean() > .938
        assert ((e.high - e.low) > 0).all()

def test_an_interval_says_when_there_is_none():
    "08_bootstrap_cover: none below five prompts; never '1 [1, 1]'."
    assert interval([1., 2, 4]).text() == '2.33, no interval' and np.isnan(interval([1., 2, 4]).low)
    refused(lambda: st.mean_estimate([1., 2, 4], demand=True), 'too few')
    refused(lambda: interval([1.]), 'at least two')
    assert interval(torch.ones(20)).text() == '1.00 [0.83, 1.00]'
    assert interval([1.]*38 + [.5, .98], bounds=(0, 1)).high == 1
    assert interval(torch.zeros(20), share=False).text() == '0, the same in all'
    pairs = tasks.over_pairs(torch.tensor([1., 1]*19 + [1, 0]))
    assert interval(pairs).high == pytest.approx(st.share_estimate(19.5, 20).high)
    refused(lambda: interval([1., float('inf')]*5), 'row 1 has inf')
    refused(lambda: interval(torch.ones(20), level=95), 'coverage is 95')
    refused(lambda: st.mean_estimate('abc'), 'expected')
    refused(lambda: st.mean_estimate([]), 'at least one')
    refused(lambda: st.share_estimate(7, 5), 'expected 0 to 5')

def test_null_differences_are_rejected_as_often_as_said():
    "Tests: type-I error .05 ± .015; p is never 0; a score without variance is refused."
    rng = np.random.default_rng(0)
    p = st.paired_test(rng.normal(size=(20, 1000)), times=399)
    assert abs((p <= .05).mean() - .05) <= .02 and p.min() > 0
    assert st.against_random(1., np.zeros(100)).p == pytest.approx(1/101) and 'none of 100' in str(st.against_random(1., np.zeros(100)))
    refused(lambda: st.informative([1.]*5, 'the NLD'), 'the NLD is 1 on each of 5')
    refused(lambda: st.paired_test([1., 2], [1., 2]), 'agree')
    refused(lambda: st.mcnemar([.5], [1]), 'right')
    assert st.detectable(25) < st.detectable(10) and .5 < st.detectable(25) < .65

def test_numbers_are_rounded_to_what_is_known():
    "Any processor: the last place printed is the second of the half width."
    for noise in (0, 1e-9, -3e-6): assert st.Estimate(.31912 + noise, .3003, .3379, 30).text() == '0.319 [0.300, 0.338]'
    assert st.rounded(.000319123, .0000451) == '0.000319' and st.rounded(12345.6, 210.) == '12,350'
    assert st.at_least(.989) == '0.98' and st.at_most(.0101) == '0.011' and st.at_least(.95) == '0.95'

def test_held_out_prompts_that_cannot_be_drawn_are_refused(house):
    "Hangs: draws that never succeed end in a sentence."
    every = training.holdout(0, pairs=1.)
    refused(lambda: training.ioi_held_out('seen', house, every, 2), 'no prompt')
    refused(lambda: training.ioi_held_out('answers', house, training.holdout(0, answers=0), 2), 'no prompt')
    refused(lambda: training.ioi_rows(house, every)(random.Random(0), 1, 40), 'no')
    refused(lambda: training.holdout(0, pairs=1.5), 'pairs is 1.5')
    refused(lambda: training.KneserNey([1, 2, 99], 2, 10), '0 to 9')
    refused(lambda: training.copying_scores(None, range(5), length=12), 'the pool has 5 tokens')

# ---- parts of a task, baselines, and the state at one token ------------------------------------------------------

@pytest.mark.parametrize('kind', (1, 2))
@pytest.mark.parametrize('restart', (True, False))
def test_the_effect_of_the_state_at_one_token(kind, restart):
    "mean_over_padding: `state@5` is patched at token 5 and nowhere else, whichever way it is computed."
    model, task = Mamba.tiny(seed=3, kind=kind).double().requires_grad_(False), toy()
    found = patch_effects(model, task, '1.state@5', restart=restart)[Site('state', 1, 5)]
    right = patch_effects(model, task, '1.state')[Site('state', 1)]
    assert torch.allclose(found[:, 5], right[:, 5]) and right[:, 5].abs().max() > 0
    found[:, 5] = 0
    assert not found.any()

@pytest.mark.parametrize('i', [99, -99, 'x', None, 2.5, slice('a'), torch.tensor([99]), torch.ones(3).bool(), torch.tensor([1.]), [99], {}, (1, 2)], ids=str)
def test_prompts_that_a_task_does_not_have(i):
    "several_answers: the parts that a metric is handed are named by numbers of prompts."
    refused(lambda: toy()[i])
    assert [o.index.item() for o in toy()] == list(range(6))  # iteration still ends

@pytest.mark.parametrize('wrong', [dict(group=[0]*6), dict(group=3), dict(group=torch.zeros(6)), dict(group=torch.full((6,), 5), groups=('a', 'b')), dict(groups='ab'),
    dict(groups=3), dict(name=3), dict(clean_diff=torch.zeros(3)), dict(clean_diff='x'), dict(corrupt_diff=torch.zeros(6).long()), dict(right=torch.zeros(6, 0).long()),
    dict(right=torch.zeros(6).long().to('meta')), dict(right=torch.zeros(6).long().to_sparse())], ids=str)
def test_fields_of_a_task(wrong):
    "uninformative_metric: what is no group, baseline or answer is refused when the task is made, by name."
    refused(lambda: toy(**wrong), *list(wrong)[:1])

def test_logits_of_another_kind():
    "several_answers: `top` on logits of a smaller vocabulary, whole or complex numbers are no answer."
    task = toy(right=torch.full((6,), 60))
    refused(lambda: task.top(torch.zeros(6, 10)), 'answer 60', '10 tokens')
    for logits in (torch.zeros(6, V).long(), torch.zeros(6, V, dtype=torch.complex64)):
        for f in ('top', 'accuracy', 'logit_diff', 'probability'): refused(lambda: getattr(task, f)(logits), 'floating-point')
    refused(lambda: task.with_baselines(None), 'the model is a NoneType')

def test_words_and_tokenizers_of_another_kind(house):
    "from_prompts_errors: words that are no text, and tokenizers that are none."
    for wrong in ('x', None, 3): refused(lambda: ioi(wrong, 2), 'tokenizer')
    refused(lambda: tasks.bos_id(None), 'tokenizer')
    for words in (None, [3], 'Mary'):
        refused(lambda: tasks.token_ids(words, house), 'a list of texts')
        refused(lambda: tasks.single_token(words, house), 'a list of texts')
    refused(lambda: tasks.encode(house, 3), 'expected text')
    refused(lambda: from_prompts(None, house), 'at least one')
    refused(lambda: from_prompts([Prompt('A [N]', 3, 4, '', '')], house), 'clean is 3')
    refused(lambda: ioi(house, 3, templates=3), 'templates')
    for values in (None, [1, 2]): refused(lambda: tasks.over_pairs(values), 'expected a tensor')

def test_patching_of_what_is_none(model):
    "adapter_circuits: no model, no task, and a metric that fails in its own way."
    for f in (patch_effects, site_effects):
        refused(lambda: f(model, None), 'the task is a NoneType')
        refused(lambda: f('house', toy()), 'the model is a str')
        refused(lambda: f(model, toy(), metric=lambda task, logits: 1/0), 'the metric fails', 'ZeroDivisionError')

def test_estimates_check_their_settings_at_every_size():
    "08_bootstrap_cover: with two prompts there is no interval, but the settings are looked at all the same."
    for wrong in (dict(times=0), dict(seed=-1), dict(bounds=3), dict(bounds=(1, 0)), dict(strata=[1, 2, 3]), dict(share=True)):
        refused(lambda: st.mean_estimate([1., 2.], **wrong))
    refused(lambda: st.paired_test([1., 2.], times=0), 'times')
    assert np.isnan(st.mean_estimate([1., 2.], bounds=(0, 3)).low)
