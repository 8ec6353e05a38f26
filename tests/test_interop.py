"The SAE files of SAELens, `sparsify` and `dictionary_learning` and ours open each other's, in an environment that has them (`make interop`)."
import json, subprocess
from pathlib import Path

import pytest, torch
from docs import pages
from mamba_interp.model import Mamba, record
from mamba_interp.sae import L1, SAE, BatchTopK, Gated, JumpReLU, Matryoshka, TopK, origin
from safetensors.torch import load_file, save_file

python = pages.root/'.venv-interop'/'bin'/'python'
ours = dict(l1=L1(), gated=Gated(), jumprelu=JumpReLU(), topk=TopK(5), batchtopk=BatchTopK(5), matryoshka=Matryoshka(5, (9, 37)))

# Reads our folders and writes what it makes of them; then makes its own. SAELens imports wandb, only to log: an empty module stands in.
PEERS = r'''
import sys, types, json, importlib.machinery
from pathlib import Path
wandb = sys.modules['wandb'] = types.ModuleType('wandb')
wandb.__spec__ = importlib.machinery.ModuleSpec('wandb', None)
import torch
from safetensors.torch import load_file, save_file
from sae_lens import SAE
from sae_lens.registry import get_sae_class, get_sae_training_class
from sparsify import SparseCoder, SparseCoderConfig
from dictionary_learning import dictionary as dl
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
here, d, f, k = Path(sys.argv[1]), 13, 37, 5
x = load_file(here/'x.safetensors')['x']
torch.manual_seed(0)

def keep(folder, features, out): save_file({k: v.detach().contiguous() for k,v in dict(features=features, out=out).items()}, folder/'seen.safetensors')

def shaken(module):
    "Nothing at zero, and decoder rows of other norms than 1."
    with torch.no_grad():
        for name,o in module.named_parameters(): o.add_(.3*torch.randn_like(o)) if name not in ('threshold', 'log_threshold') else o.copy_(.2 + .3*torch.rand_like(o))
    return module

for folder in sorted((here/'ours').iterdir()):
    sae = SAE.load_from_disk(str(folder))
    keep(folder, sae.encode(x), sae.decode(sae.encode(x)))
    (folder/'class').write_text(f'{sae.cfg.architecture()} at {sae.cfg.metadata.hook_name}')

for folder in sorted((here/'older').iterdir()):
    sae = SAE.load_from_disk(str(folder))
    keep(folder, sae.encode(x), sae.decode(sae.encode(x)))

from sae_lens.load_model import HookedProxyLM
from transformers import AutoModelForCausalLM
hooked = HookedProxyLM(AutoModelForCausalLM.from_pretrained(here/'mamba'), None)
for folder in sorted((here/'hooked').iterdir()):
    sae = SAE.load_from_disk(str(folder))
    name = sae.cfg.metadata.hook_name
    with torch.no_grad(): _, seen = hooked.run_with_cache(load_file(here/'tokens.safetensors')['tokens'], names_filter=[name])
    keep(folder, sae.encode(seen[name]), sae(seen[name]))
    (folder/'hook').write_text(name)

for name in ('standard', 'gated', 'jumprelu', 'topk', 'transcoder', 'jumprelu_transcoder'):
    made, config = get_sae_class(name)
    extra = dict(d_out=9, apply_b_dec_to_input=False) if 'transcoder' in name else dict(k=k) if name == 'topk' else {}
    sae = shaken(made(config(d_in=d, d_sae=f, **extra)))
    sae.save_model(here/'lens'/name)
    keep(here/'lens'/name, sae.encode(x), sae.decode(sae.encode(x)))

for name in ('standard', 'gated', 'jumprelu', 'topk', 'batchtopk', 'matryoshka_batchtopk'):
    made, config = get_sae_training_class(name)
    extra = dict(k=k) if 'topk' in name else {}
    if 'matryoshka' in name: extra['matryoshka_widths'] = [9, f]
    sae = shaken(made(config(d_in=d, d_sae=f, **extra)))
    if hasattr(sae, 'topk_threshold'): sae.topk_threshold.fill_(.4)
    sae.save_inference_model(str(here/'lens'/f'trained_{name}'))
    again = SAE.load_from_disk(str(here/'lens'/f'trained_{name}'))
    keep(here/'lens'/f'trained_{name}', again.encode(x), again.decode(again.encode(x)))

for name in ('autoencoder', 'transcoder'):
    sae = shaken(SparseCoder(d, SparseCoderConfig(num_latents=f, k=k, transcode=name == 'transcoder')))
    sae.save_to_disk(here/'sparsify'/name)
    top = sae.encode(x)
    keep(here/'sparsify'/name, torch.zeros(len(x), f).scatter(1, top.top_indices, top.top_acts), sae(x).sae_out)

dictionaries = dict(AutoEncoder=dl.AutoEncoder(d, f), AutoEncoderNew=dl.AutoEncoderNew(d, f), GatedAutoEncoder=dl.GatedAutoEncoder(d, f), JumpReluAutoEncoder=dl.JumpReluAutoEncoder(d, f),
    AutoEncoderTopK=AutoEncoderTopK(d, f, k), BatchTopKSAE=BatchTopKSAE(d, f, k), MatryoshkaBatchTopKSAE=MatryoshkaBatchTopKSAE(d, f, k, [9, f - 9]))
for name,sae in dictionaries.items():
    folder = here/'dictionary_learning'/name
    folder.mkdir(parents=True)
    shaken(sae)
    if 'Batch' in name: sae.threshold.fill_(.4)
    torch.save(sae.state_dict(), folder/'ae.pt')
    (folder/'config.json').write_text(json.dumps(dict(trainer=dict(dict_class=name, lm_name='tiny', layer=1) | (dict(k=k) if 'TopK' in name else {}))))
    keep(folder, sae.encode(x), sae(x))
'''

@pytest.fixture(scope='module')
def there(tmp_path_factory):
    "A folder with our SAEs, what the peers see in them, and the peers' own."
    assert python.exists(), 'there is no .venv-interop, in which SAELens would read our files; make it with: make interop'
    here, rng = tmp_path_factory.mktemp('interop'), torch.Generator().manual_seed(0)
    save_file(dict(x=torch.randn(50, 13, generator=rng)), here/'x.safetensors')
    for name,kind in ours.items():
        shaken(SAE(13, 37, kind, site='1.block_out'), rng).save(here/'ours'/name)
        if name in ('gated', 'topk'): shaken(SAE(13, 37, kind, site='1.norm', out_site='1.block_out'), rng).save(here/'ours'/f'{name}_transcoder')
        if name in ('l1', 'batchtopk', 'jumprelu'): shaken(SAE(13, 37, kind, d_out=9, site='1.norm', out_site='1.block_out'), rng).save(here/'ours'/f'{name}_transcoder')
    for name,o in older(rng).items(): o(here/'older'/name)
    for name,o in hooked(here).items(): o.save(here/'hooked'/name)
    r = subprocess.run([python, '-c', PEERS, here], capture_output=True, text=True, cwd=here, env=dict(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1', HOME=str(here), PATH='/usr/bin:/bin'))
    assert r.returncode == 0, f'the libraries in .venv-interop do not run; make it again with: make interop\n{r.stderr[-3000:]}'
    return here

HOOKS = {'0.resid': 'backbone.embeddings', '2.resid': 'backbone.layers.1', '1.block_out': 'backbone.layers.1.mixer', '1.norm': 'backbone.layers.1.norm'}
tokens = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(3))

def hooked(here):
    "One SAE for each of our sites, and in `here` the model that they are of."
    model = Mamba.tiny(seed=0)
    model.save(here/'mamba')
    save_file(dict(tokens=tokens), here/'tokens.safetensors')
    return {o: SAE(24, 40, TopK(5), site=o, meta=origin(model)) for o in HOOKS}

def older(rng):
    "Files as SAELens wrote them before version 6, by name: a flat cfg.json, activations normalised or not."
    def written(folder, how, **more):
        folder.mkdir(parents=True)
        shape = dict(W_enc=(13, 37), W_dec=(37, 13), b_enc=(37,), b_dec=(13,))
        save_file({k: torch.randn(v, generator=rng)/3 for k,v in shape.items()}, folder/'sae_weights.safetensors')
        cfg = dict(architecture='standard', d_in=13, d_sae=37, dtype='float32', model_name='mistral-7b', hook_name='blocks.16.hook_mlp_out', context_size=256, normalize_activations=how, prepend_bos=True, dataset_path='none', lr=1e-4)
        (folder/'cfg.json').write_text(json.dumps(cfg | more))
    topk = dict(activation_fn_str='topk', activation_fn_kwargs=dict(k=5))
    return {f'{kind}_{how}': lambda folder, how=how, more=more: written(folder, how, **more) for how in ('none', 'layer_norm', 'constant_norm_rescale') for kind,more in (('relu', {}), ('topk', topk))}

def shaken(sae, rng):
    "Nothing at zero, and decoder rows of other norms than 1."
    with torch.no_grad():
        for name,o in sae.named_parameters(): o.add_(.3*(torch.rand if name == 'threshold' else torch.randn)(o.shape, generator=rng))
        if hasattr(sae, 'running'): sae.running.fill_(.4)
    return sae

def agrees(sae, folder, x):
    "The peer's encoding and reconstruction are ours; at least a few features fire, and not all."
    seen, features = load_file(folder/'seen.safetensors'), sae.encode(x)
    torch.testing.assert_close(sae(x), seen['out'], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(features, seen['features'], rtol=1e-5, atol=2e-5)
    assert .02 < (features > 0).float().mean() < .98

EXPECT = dict(l1='standard', gated='gated', jumprelu='jumprelu', topk='topk', batchtopk='jumprelu', matryoshka='jumprelu', l1_transcoder='transcoder', batchtopk_transcoder='jumprelu_transcoder', jumprelu_transcoder='jumprelu_transcoder', gated_transcoder='gated', topk_transcoder='topk')

@pytest.mark.parametrize('name', EXPECT)
def test_saelens_opens_ours(name, there):
    folder = there/'ours'/name
    agrees(SAE.load(folder), folder, load_file(there/'x.safetensors')['x'])
    assert (folder/'class').read_text() == f"{EXPECT[name]} at backbone.layers.1.{'norm' if 'transcoder' in name else 'mixer'}"

@pytest.mark.parametrize('site', HOOKS)
def test_saelens_attaches_ours_to_transformers(site, there):
    "The hook that the file names gives, in transformers' Mamba with the same weights, the reconstruction that we give at the site."
    folder = there/'hooked'/site
    assert (folder/'hook').read_text() == HOOKS[site]
    model = Mamba.load(there/'mamba')
    sae, x = SAE.load(folder, model=model), record(model, tokens, site)
    with torch.no_grad(): ours, theirs = sae(next(iter(x.values()))), load_file(folder/'seen.safetensors')['out']
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

@pytest.mark.parametrize('name', [f'{kind}_{how}' for how in ('none', 'layer_norm', 'constant_norm_rescale') for kind in ('relu', 'topk')])
def test_older_files_are_read_as_saelens_reads_them(name, there):
    "Before version 6: activations normalised each by itself, to 1e-6; what the file is about is kept when it is saved again."
    folder = there/'older'/name
    sae, x, seen = SAE.load(folder), load_file(there/'x.safetensors')['x'], load_file(folder/'seen.safetensors')
    assert sae.normalise == {'none': None, 'layer_norm': 'layer_norm', 'constant_norm_rescale': 'rescale'}[name.partition('_')[2]]
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(x), seen['features'], rtol=1e-6, atol=2e-6)
        torch.testing.assert_close(sae(x), seen['out'], rtol=1e-6, atol=2e-6)
    sae.save(there/'again'/name)
    again = json.loads((there/'again'/name/'cfg.json').read_text())
    assert again['normalize_activations'] == name.partition('_')[2]
    assert {k: again['metadata'][k] for k in ('model_name', 'hook_name', 'context_size')} == dict(model_name='mistral-7b', hook_name='blocks.16.hook_mlp_out', context_size=256)

THEIRS = {f'lens/{k}': v for k,v in dict(standard=L1, gated=Gated, jumprelu=JumpReLU, topk=TopK, transcoder=L1, jumprelu_transcoder=JumpReLU, trained_standard=L1, trained_gated=Gated,
    trained_jumprelu=JumpReLU, trained_topk=TopK, trained_batchtopk=JumpReLU, trained_matryoshka_batchtopk=JumpReLU).items()}
THEIRS |= {'sparsify/autoencoder': TopK, 'sparsify/transcoder': TopK}
THEIRS |= {f'dictionary_learning/{k}': v for k,v in dict(AutoEncoder=L1, AutoEncoderNew=L1, GatedAutoEncoder=Gated, JumpReluAutoEncoder=JumpReLU, AutoEncoderTopK=TopK, BatchTopKSAE=BatchTopK, MatryoshkaBatchTopKSAE=Matryoshka).items()}

@pytest.mark.parametrize('name', THEIRS)
def test_we_open_theirs(name, there):
    sae = SAE.load(there/name)
    assert type(sae.activation) is THEIRS[name] and getattr(sae.activation, 'k', 5) == 5
    agrees(sae, there/name, load_file(there/'x.safetensors')['x'])
