"Two tasks of lm-eval (ARC's choices, DROP's answers) score a model as `ask` does, in an environment that has it (`make interop`)."
import json, subprocess
from dataclasses import replace

import pytest, torch
from docs import pages
from mamba_interp.model import Mamba
from mamba_interp.tasks import ask, make_prompts

python = pages.root/'.venv-interop'/'bin'/'python'
BOS = '<|endoftext|>'

# Their own definitions of both tasks; only the rows are ours, since no hub is reached, and the prompt and where an answer ends.
PEER = r'''
import json, sys
from pathlib import Path
import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer
here = Path(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(here/'mamba')
model = AutoModelForCausalLM.from_pretrained(here/'mamba')
lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device='cpu', max_length=512)
tasks = Path(lm_eval.__file__).parent/'tasks'
def local(task, theirs, **more):
    rows = dict(dataset_path='json', dataset_name=None, dataset_kwargs=dict(data_files=dict(test=str(here/f'{task}.jsonl'))))
    file = here/f'{task}.yaml'
    file.write_text(json.dumps(dict(include=str(tasks/theirs), task=task, training_split=None, validation_split=None, test_split='test',
        doc_to_text='{{prompt}}', **rows, **more)))   # JSON is YAML too
    return str(file)
until = dict(generation_kwargs=dict(until=['\n', 'Question'], max_gen_toks=16, do_sample=False))
chosen = [local('arc_easy', 'arc/arc_easy.yaml'), local('drop', 'drop/default.yaml', **until)]
found = lm_eval.simple_evaluate(lm, tasks=chosen, task_manager=TaskManager(include_defaults=False), bootstrap_iters=0)
keep = lambda o: dict(doc_id=o['doc_id'], said=o['filtered_resps'], **{k: o[k] for k in ('acc', 'acc_norm', 'em', 'f1') if k in o})
samples = {k: sorted(map(keep, v), key=lambda o: o['doc_id']) for k, v in found['samples'].items()}
(here/'found.json').write_text(json.dumps(dict(results=found['results'], samples=samples), default=str))
'''

def rows(questions, choices):
    "The questions as lines of both tasks; the right choice moves from place to place."
    none = dict(day='', month='', year='')
    for i, o in enumerate(questions):
        right, *others = choices[o.id]
        texts = others[:i % (len(others) + 1)] + [right] + others[i % (len(others) + 1):]
        labels = [str(k) for k in range(len(texts))]
        value = lambda a: dict(number=a if a.isdigit() else '', date=none, spans=[] if a.isdigit() else [a])
        more = dict(number=[value(a)['number'] for a in o.answers[1:]], date=[none for _ in o.answers[1:]],
            spans=[value(a)['spans'] for a in o.answers[1:]])
        prompt = f'{BOS}{o.prompt()}'
        yield (dict(id=o.id, prompt=prompt, question=o.question, choices=dict(text=texts, label=labels), answerKey=str(texts.index(right))),
            dict(query_id=o.id, prompt=prompt, passage='', question=o.question, answer=value(o.answers[0]), validated_answers=more))

@pytest.fixture(scope='module')
def there(tmp_path_factory):
    "Our answers of a tiny random model, and what lm-eval makes of the same questions."
    assert python.exists(), 'there is no .venv-interop, in which lm-eval would run; make it with: make interop'
    here, house = tmp_path_factory.mktemp('lm-eval'), Mamba.load('house')
    torch.manual_seed(0)
    model = Mamba.tiny(seed=5, vocab_size=house.config.vocab_size).requires_grad_(False)
    model.tokenizer = house.tokenizer
    model.save(here/'mamba')
    house.tokenizer.save_pretrained(here/'mamba')
    asked = [replace(o, source='drop') for many in make_prompts(n=6).values() for o in many]
    said = [o.line for o in ask(model, asked, choices=None).rows]   # some answers are made right, and some right in part
    gold = [(line,) if i % 3 == 0 else (f'{line} indeed', o.answers[0]) if i % 3 == 1 else o.answers for i, (o, line) in enumerate(zip(asked, said))]
    choices = {o.id: tuple(dict.fromkeys([a[0], *o.answers, 'Oslo', 'a long way off'])) for o, a in zip(asked, gold)}
    asked = [replace(o, answers=a) for o, a in zip(asked, gold)]
    for name, many in zip(('arc_easy', 'drop'), zip(*rows(asked, choices))):
        (here/f'{name}.jsonl').write_text(''.join(json.dumps(o) + '\n' for o in many))
    env = dict(HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1', TRANSFORMERS_OFFLINE='1', OMP_NUM_THREADS='1', HOME=str(here), PATH='/usr/bin:/bin')
    r = subprocess.run([python, '-c', PEER, here], capture_output=True, text=True, cwd=here, env=env)
    assert r.returncode == 0, f'lm-eval does not run; make its environment again with: make interop\n{r.stderr[-3000:]}'
    return ask(model, asked, choices=choices), json.loads((here/'found.json').read_text()), choices

def test_choices_are_scored_as_by_lm_eval(there):
    "Log p of every choice, accuracy, and accuracy by length."
    ours, theirs, choices = there
    for i, (row, sample) in enumerate(zip(ours.rows, theirs['samples']['arc_easy'], strict=True)):
        k = i % len(choices[row.id])
        logp = [float(o[0]) for o in sample['said']]
        torch.testing.assert_close([logp[k], *logp[:k], *logp[k + 1:]], list(row.choice_logp), rtol=1e-5, atol=1e-4)
    for name, metric in (('acc', 'choice'), ('acc_norm', 'choice_by_length')):
        got = [o[name] for o in theirs['samples']['arc_easy']]
        assert got == ours.score(metric).tolist()
        assert 0 < sum(got) < len(got)
        assert theirs['results']['arc_easy'][f'{name},none'] == pytest.approx(ours.score(metric).mean())

def test_written_answers_are_scored_as_by_lm_eval(there):
    "What is written, exact match and F1."
    ours, theirs, _ = there
    samples = theirs['samples']['drop']
    assert [o['said'][0].strip() for o in samples] == [o.line for o in ours.rows]
    for name in ('em', 'f1'):
        assert [o[name] for o in samples] == pytest.approx(ours.score(name).tolist(), abs=.005)
        assert theirs['results']['drop'][f'{name},none'] == pytest.approx(ours.score(name).mean(), abs=.005)
    assert 0 < ours.score('em').mean() < ours.score('f1').mean() < 1
