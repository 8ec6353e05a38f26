"The SAE files of SAELens, `sparsify` and `dictionary_learning` and ours open each other's, in an environment that has them (`make interop`)."
import json, subprocess
from pathlib import Path

import pytest, torch
from docs import pages
from mamba_interp.sae import L1, SAE, BatchTopK, Gated, JumpReLU, Matryoshka, TopK
from safetensors.torch import load_file

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
    from safetensors.torch import save_file
    save_file(dict(x=torch.randn(50, 13, generator=rng)), here/'x.safetensors')
    for name,kind in ours.items():
        shaken(SAE(13, 37, kind, site='1.block_out'), rng).save(here/'ours'/name)
        if name in ('gated', 'topk'): shaken(SAE(13, 37, kind, site='1.norm', out_site='1.block_out'), rng).save(here/'ours'/f'{name}_transcoder')
        if name in ('l1', 'batchtopk', 'jumprelu'): shaken(SAE(13, 37, kind, d_out=9, site='1.norm', out_site='1.block_out'), rng).save(here/'ours'/f'{name}_transcoder')
    r = subprocess.run([python, '-c', PEERS, here], capture_output=True, text=True, cwd=here, env=dict(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1', HOME=str(here), PATH='/usr/bin:/bin'))
    assert r.returncode == 0, f'the libraries in .venv-interop do not run; make it again with: make interop\n{r.stderr[-3000:]}'
    return here

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
    assert (folder/'class').read_text() == f"{EXPECT[name]} at {'1.norm' if 'transcoder' in name else '1.block_out'}"

THEIRS = {f'lens/{k}': v for k,v in dict(standard=L1, gated=Gated, jumprelu=JumpReLU, topk=TopK, transcoder=L1, jumprelu_transcoder=JumpReLU, trained_standard=L1, trained_gated=Gated,
    trained_jumprelu=JumpReLU, trained_topk=TopK, trained_batchtopk=JumpReLU, trained_matryoshka_batchtopk=JumpReLU).items()}
THEIRS |= {'sparsify/autoencoder': TopK, 'sparsify/transcoder': TopK}
THEIRS |= {f'dictionary_learning/{k}': v for k,v in dict(AutoEncoder=L1, AutoEncoderNew=L1, GatedAutoEncoder=Gated, JumpReluAutoEncoder=JumpReLU, AutoEncoderTopK=TopK, BatchTopKSAE=BatchTopK, MatryoshkaBatchTopKSAE=Matryoshka).items()}

@pytest.mark.parametrize('name', THEIRS)
def test_we_open_theirs(name, there):
    sae = SAE.load(there/name)
    assert type(sae.activation) is THEIRS[name] and getattr(sae.activation, 'k', 5) == 5
    agrees(sae, there/name, load_file(there/'x.safetensors')['x'])
