"lm-eval's model `steered`, given our file, says what our run says with `add`, in an environment that has it (`make interop`)."
import json, subprocess

import pytest, torch
from docs import pages
from mamba_interp import steering as st
from mamba_interp.model import Mamba, chain
from safetensors.torch import load_file, save_file

python = pages.root/'.venv-interop'/'bin'/'python'
SITES = 'embed', '0.resid', '2.resid', '1.norm', '1.x', '1.z', '1.B', '1.C', '1.block_out', 'final_resid', 'final_norm'
CHOICES = ('Mary went to the', ' park'), ('Mary went to the', ' house with John'), ('John gave', ' a ball to Mary')

# Their class, as `lm_eval --model steered --model_args pretrained=…,steer_path=…` makes it; a score of a task is made of `loglikelihood`.
PEER = r'''
import json, sys
from pathlib import Path
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.hf_steered import SteeredModel
from safetensors.torch import load_file, save_file
here = Path(sys.argv[1])
tokens, found, said = load_file(here/'tokens.safetensors')['tokens'], {}, {}
asked = [Instance('loglikelihood', {}, tuple(o), i) for i,o in enumerate(json.loads((here/'choices.json').read_text()))]
for file in sorted(here.glob('*.pt')):
    lm = SteeredModel(pretrained=str(here/'mamba'), steer_path=str(file), device='cpu', batch_size=1, max_length=64)
    with torch.no_grad(): found[file.stem] = lm._model_call(tokens).contiguous()
    said[file.stem] = [o[0] for o in lm.loglikelihood(asked, disable_tqdm=True)]
save_file(found, here/'found.safetensors')
(here/'said.json').write_text(json.dumps(said))
'''

def direction(model, site, tokens, seed):
    width = st.site_rows(model, site, tokens).shape[1]
    return st.as_direction(model, site, torch.randn(width, generator=torch.Generator().manual_seed(seed)), tokens)

@pytest.fixture(scope='module')
def there(tmp_path_factory):
    "Files for a tiny random model, our logits under the same edits, and theirs."
    assert python.exists(), 'there is no .venv-interop, in which lm-eval would run; make it with: make interop'
    here, house = tmp_path_factory.mktemp('steered'), Mamba.load('house')
    model = Mamba.tiny(seed=5, vocab_size=house.config.vocab_size).requires_grad_(False)
    model.tokenizer = house.tokenizer
    model.save(here/'mamba')
    house.tokenizer.save_pretrained(here/'mamba')
    tokens = torch.randint(0, house.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    save_file(dict(tokens=tokens), here/'tokens.safetensors')
    (here/'choices.json').write_text(json.dumps(CHOICES))
    edits = {}
    for site in SITES:
        one, two = (direction(model, site, tokens, k) for k in (0, 1))
        name = site.replace('.', '_')
        for how, given, action, taps in ((f'{name} add', {one: .8}, 'add', st.add(one, .8)), (f'{name} both', {one: .8, two: -.3}, 'add', chain(st.add(one, .8), st.add(two, -.3))),
                (f'{name} set', {one: .4}, 'clamp', st.set_to(one, .4)), (f'{name} out', {one: 0.}, 'clamp', st.project_out(one))):
            st.save_steering(here/f'{how}.pt', model, given, action)
            edits[how] = taps
    env = dict(HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1', TRANSFORMERS_OFFLINE='1', OMP_NUM_THREADS='1', HOME=str(here), PATH='/usr/bin:/bin')
    r = subprocess.run([python, '-c', PEER, here], capture_output=True, text=True, cwd=here, env=env)
    assert r.returncode == 0, f'lm-eval does not run; make its environment again with: make interop\n{r.stderr[-3000:]}'
    return model, tokens, edits, load_file(here/'found.safetensors'), json.loads((here/'said.json').read_text())

@pytest.mark.parametrize('site', SITES)
def test_steered_logits_are_ours(site, there):
    "Added once, two at a time, set to a value, taken out; the change of the logits is the same to a hundredth, however small it is."
    model, tokens, edits, found, _ = there
    plain = model(tokens)
    for how in ('add', 'both', 'set', 'out'):
        name = f"{site.replace('.', '_')} {how}"
        ours = model(tokens, edits[name])
        assert (found[name] - ours).norm() < .01*(ours - plain).norm(), name
        torch.testing.assert_close(found[name], ours, rtol=1e-4, atol=1e-4*plain.abs().max().item())

def test_a_choice_is_scored_as_by_our_steered_run(there):
    "What lm-eval makes a multiple-choice score of."
    model, _, edits, _, said = there
    name, first = '1_block_out add', model.tokenizer.eos_token_id
    moved = 0.
    for (context, choice), theirs in zip(CHOICES, said[name], strict=True):
        ids, more = (model.tokenizer.encode(o, add_special_tokens=False) for o in (context, choice))
        tokens = torch.tensor([ids + more])
        scores = [model(tokens, o).log_softmax(-1)[0, len(ids) - 1:-1] for o in (edits[name], {})]
        ours, plain = (o.gather(-1, torch.tensor(more)[:, None]).sum().item() for o in scores)
        assert abs(ours - theirs) < 1e-3, (choice, ours, theirs)
        moved = max(moved, abs(ours - plain))
    assert moved > .01
