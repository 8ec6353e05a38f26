"What is put into autoencoders, their files and their training comes out right or is refused in one sentence."
import json, math, os, signal, subprocess, sys
from dataclasses import asdict
from pathlib import Path

import numpy as np, pytest, torch
from mamba_interp.model import Mamba
from mamba_interp.sae import (L1, SAE, BatchTopK, Gated, Harvest, JumpReLU, KSchedule, Matryoshka, Metrics,
                              Planted, Rows, SAERecipe, TopK, check_sae, compare, density_histogram,
                              evaluate_sae, evaluate_saes, hook_name, origin, random_twin, train_saes)
from safetensors.torch import load_file, save_file

D, F, K = 12, 40, 5

def told(what, call, *words):
    "`call()` raises one sentence that has all `words`."
    with pytest.raises((ValueError, TypeError, OSError)) as e: call()
    said = str(e.value)
    assert '\n' not in said and len(said) > 20, (what, said)
    for o in words: assert o in said, (what, said)

def weights(seed=0, **more):
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=rng)/3
    return dict(W_enc=draw(D, F), W_dec=draw(F, D), b_enc=draw(F), b_dec=draw(D)) | more

def lens(folder, tensors=None, cfg=..., **more):
    "A folder as SAELens writes it."
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k,v in (weights() if tensors is None else tensors).items()}, folder/'sae_weights.safetensors')
    (folder/'cfg.json').write_text(json.dumps(dict(architecture='standard', d_in=D, d_sae=F) | more if cfg is ... else cfg))
    return folder

def sparsify(folder, **more):
    w = weights()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({'encoder.weight': w['W_enc'].T.contiguous(), 'encoder.bias': w['b_enc'], 'W_dec': w['W_dec'], 'b_dec': w['b_dec']} | more.pop('tensors', {}), folder/'sae.safetensors')
    (folder/'cfg.json').write_text(json.dumps(dict(d_in=D, num_latents=F, k=K) | more))
    return folder

def dictionary(folder, config=None, **more):
    w = weights()
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {'encoder.weight': w['W_enc'].T, 'encoder.bias': w['b_enc'], 'decoder.weight': w['W_dec'].T, 'b_dec': w['b_dec']} | more
    torch.save({k: v for k,v in tensors.items() if v is not None}, folder/'ae.pt')
    if config is not None: (folder/'config.json').write_text(json.dumps(config))
    return folder

x = torch.randn(64, D, generator=torch.Generator().manual_seed(1))

# --- files -----------------------------------------------------------------------------------------------------

def test_tensors_and_settings_that_nothing_would_use_are_refused(tmp_path):
    "03_tensors_that_are_not_used: a threshold under 'standard', a finetuned scale, `signed`; and more of the kind."
    cases = [
        (lens(tmp_path/'a', weights(threshold=torch.full((F,), .8))), 'threshold'),
        (lens(tmp_path/'b', weights(scaling_factor=1 + torch.arange(F)/F)), 'scaling_factor'),
        (lens(tmp_path/'c', finetuning_scaling_factor=True), 'finetuning_scaling_factor'),
        (sparsify(tmp_path/'d', signed=True), 'signed'),
        (lens(tmp_path/'e', weights(W_skip=torch.zeros(D, D))), 'W_skip'),
        (lens(tmp_path/'f', weights(b_mag=torch.zeros(F))), 'b_mag'),
        (lens(tmp_path/'g', weights(threshold=torch.zeros(F)), architecture='topk', k=K), 'threshold'),
        (lens(tmp_path/'h', activation_fn_str='tanh-relu'), 'activation_fn_str'),
        (lens(tmp_path/'i', activation_fn_str='topk', activation_fn_kwargs=dict(k=K, use_relu=False)), 'use_relu'),
        (sparsify(tmp_path/'j', activation='groupmax'), 'groupmax'),
        (sparsify(tmp_path/'k', skip_connection=True), 'skip connection'),
        (sparsify(tmp_path/'l', tensors=dict(W_skip=torch.zeros(D, D))), 'W_skip'),
        (lens(tmp_path/'m', metadata={}, error_correction='twice'), 'error_correction'),
        (lens(tmp_path/'n', normalize_activations='expected_average_only_in'), 'expected_average_only_in'),
        (dictionary(tmp_path/'o', dict(trainer=dict(dict_class='AutoEncoder')), scale=torch.ones(F)), 'scale'),
        (dictionary(tmp_path/'p', dict(trainer=dict(dict_class='CrossCoder'))), 'CrossCoder')]
    for folder, word in cases: told(folder.name, lambda: SAE.load(folder), word, str(tmp_path))
    assert SAE.load(lens(tmp_path/'q', weights(scaling_factor=torch.ones(F)))).activation == L1()   # that says nothing
    assert SAE.load(lens(tmp_path/'r', lr=3e-4, l1_coefficient=5, dataset_path='c4')).d_sae == F    # nor does the training
    assert SAE.load(sparsify(tmp_path/'s', multi_topk=True, signed=False)).activation == TopK(K)

def test_topk_and_batchtopk_that_look_alike_need_a_word(tmp_path):
    "04_batchtopk_alone: an ae.pt without config.json is refused, unless the caller says which it is."
    counted = dict(k=torch.tensor(K), threshold=torch.tensor(.4))
    folder = dictionary(tmp_path/'a', **counted)
    told('alone', lambda: SAE.load(folder), 'TopK', 'BatchTopK', 'activation=')
    told('neither', lambda: SAE.load(folder, activation='Gated'), 'Gated')
    told('nothing', lambda: SAE.load(folder, activation='topk'), "'topk'")
    z = (x - weights()['b_dec']) @ weights()['W_enc'] + weights()['b_enc']
    want = (z*(z > .4)) @ weights()['W_dec'] + weights()['b_dec']
    sae = SAE.load(folder, activation='BatchTopK')
    torch.testing.assert_close(sae(x), want, atol=1e-5, rtol=1e-5)
    assert SAE.load(folder, activation='TopK').activation == TopK(K)
    assert SAE.load(dictionary(tmp_path/'b', dict(trainer=dict(dict_class='BatchTopKSAE')), **counted)).activation == BatchTopK(K)
    told('no class', lambda: SAE.load(dictionary(tmp_path/'c', dict(trainer=dict(k=K)), **counted)), 'config.json')
    told('another class', lambda: SAE.load(dictionary(tmp_path/'d', dict(trainer=dict(dict_class='GatedAutoEncoder')), **counted)), 'GatedAutoEncoder')
    told('another k', lambda: SAE.load(dictionary(tmp_path/'e', dict(trainer=dict(dict_class='AutoEncoderTopK', k=7)), **counted)), '7')
    told('said twice', lambda: SAE.load(lens(tmp_path/'f'), activation='TopK'), 'L1')
    assert SAE.load(dictionary(tmp_path/'g')).activation == L1()   # only one kind writes these

MALFORMED = {
    'empty': {}, 'a list': [], 'null': None, 'text': 'cfg', 'no sizes': dict(architecture='standard'), 'width 0': dict(d_in=0, d_sae=0), 'width as text': dict(d_in='12', d_sae=F), 'another width': dict(d_in=13, d_sae=F),
    'another number': dict(d_in=D, d_sae=39), 'no k': dict(architecture='topk', d_in=D, d_sae=F), 'k 2.5': dict(architecture='topk', d_in=D, d_sae=F, k=2.5), 'k true': dict(architecture='topk', d_in=D, d_sae=F, k=True),
    'k 0': dict(architecture='topk', d_in=D, d_sae=F, k=0), 'k large': dict(architecture='topk', d_in=D, d_sae=F, k=F + 1), 'k text': dict(architecture='topk', d_in=D, d_sae=F, k='5'), 'maybe': dict(d_in=D, d_sae=F, apply_b_dec_to_input='maybe'),
    'fold maybe': dict(d_in=D, d_sae=F, rescale_acts_by_decoder_norm=1), 'architecture 3': dict(d_in=D, d_sae=F, architecture=3), 'unknown': dict(d_in=D, d_sae=F, architecture='temporal'), 'metadata a list': dict(d_in=D, d_sae=F, metadata=[1]),
    'ours a text': dict(d_in=D, d_sae=F, metadata=dict(mamba_interp='x')), 'ours empty': dict(d_in=D, d_sae=F, metadata=dict(mamba_interp={})), 'meta a list': dict(d_in=D, d_sae=F, metadata=dict(mamba_interp=dict(activation='L1', meta=[]))),
    'meta a text': dict(d_in=D, d_sae=F, metadata=dict(mamba_interp=dict(activation='L1', meta='x'))), 'site a number': dict(d_in=D, d_sae=F, metadata=dict(mamba_interp=dict(activation='L1', site=3))),
    'site unknown': dict(d_in=D, d_sae=F, metadata=dict(mamba_interp=dict(activation='L1', site='3.nowhere'))), 'two kinds': dict(d_in=D, d_sae=F, metadata=dict(mamba_interp=dict(activation='TopK', k=5))),
    'coefficient': dict(d_in=D, d_sae=F, metadata=dict(mamba_interp=dict(activation='L1', coefficient=-1))), 'norms a list': dict(d_in=D, d_sae=F, normalize_activations=['layer_norm']), 'topk kwargs': dict(d_in=D, d_sae=F, activation_fn_str='topk'),
    'topk no k': dict(d_in=D, d_sae=F, activation_fn_str='topk', activation_fn_kwargs={}), 'checksum': dict(d_in=D, d_sae=F, sha256='00')}

@pytest.mark.parametrize('case', MALFORMED)
def test_a_configuration_that_cannot_be_meant(case, tmp_path):
    "reliability, SAE files: cfg {}, k 2.5, true or absent, width 0, `maybe`, meta a list or text, JSON that is no object."
    told(case, lambda: SAE.load(lens(tmp_path/'a', cfg=MALFORMED[case])), 'tmp', 'a')

BAD_TENSORS = {
    'complex': dict(W_enc=torch.zeros(D, F, dtype=torch.complex64)), 'bool': dict(b_enc=torch.zeros(F, dtype=torch.bool)), 'whole': dict(b_dec=torch.zeros(D, dtype=torch.int64)), 'nan': dict(W_dec=torch.full((F, D), math.nan)),
    'infinite': dict(b_dec=torch.full((D,), math.inf)), 'short': dict(b_enc=torch.zeros(F - 1)), 'flat': dict(W_enc=torch.zeros(F*D)), 'deep': dict(W_dec=torch.zeros(F, D, 1)), 'width 0': dict(W_enc=torch.zeros(0, F)), 'turned': dict(W_enc=torch.zeros(F, D))}

@pytest.mark.parametrize('case', BAD_TENSORS)
def test_tensors_that_cannot_be_meant(case, tmp_path):
    "reliability, SAE files: complex, NaN, width 0, other shapes."
    told(case, lambda: SAE.load(lens(tmp_path/'a', weights() | BAD_TENSORS[case])), 'tmp')

def test_an_ae_pt_that_is_something_else(tmp_path):
    "19_errors_that_mislead: weights one deeper; and other things that torch.load gives."
    for name, o, word in (('nested', dict(model={}), "'model'"), ('list', [1, 2], 'list'), ('tensor', torch.zeros(3), 'tensors by name'), ('numbers', {'encoder.weight': 3}, 'encoder.weight'),
                          ('sparse', {'encoder.weight': torch.eye(3).to_sparse()}, 'encoder.weight'), ('half of it', {'encoder.weight': torch.zeros(F, D)}, 'decoder.weight'), ('optimiser', dict(state_dict=dict(a=torch.zeros(1))), 'one deeper')):
        (tmp_path/name).mkdir()
        torch.save(o, tmp_path/name/'ae.pt')
        told(name, lambda: SAE.load(tmp_path/name), word)
    (tmp_path/'cut').mkdir()
    (tmp_path/'cut'/'ae.pt').write_bytes(b'PK\x03\x04')
    told('cut', lambda: SAE.load(tmp_path/'cut'), 'ae.pt')

@pytest.mark.parametrize('name', [None, 3, '', ' ', b'x', 'nowhere', '/nowhere/at/all', './x', '~nobody_here/x', 'owner/..', 'owner/repo/../../x', '../x', 'a b/c', 'house/../../x', 'house/9.conv', 'own\0er/x'])
def test_a_name_that_is_none(name, monkeypatch):
    "19_errors_that_mislead, and paths that lead elsewhere: refused before the Hub is asked."
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda *a, **k: pytest.fail('the Hub was asked'))
    told(name, lambda: SAE.load(name))

def test_a_file_is_not_taken_for_a_hub_name(tmp_path, monkeypatch):
    "19_errors_that_mislead: the path of a file that is there."
    monkeypatch.chdir(tmp_path)
    (tmp_path/'run'/'checkpoints').mkdir(parents=True)
    torch.save({}, 'run/checkpoints/ae_1000.pt')
    told('file', lambda: SAE.load('run/checkpoints/ae_1000.pt'), 'is a file', 'folder')

def test_no_rows_and_things_that_are_no_activations():
    "19_errors_that_mislead: no rows; lists, numbers, whole numbers and other widths."
    for kind in (TopK(2), BatchTopK(2), Matryoshka(2), L1(), Gated(), JumpReLU()):
        sae = SAE(4, 16, kind).eval()
        assert sae(torch.zeros(0, 4)).shape == (0, 4) and sae.encode(torch.zeros(3, 0, 4)).shape == (3, 0, 16)
        for o in ([1., 2., 3., 4.], np.zeros((2, 4)), torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 5), torch.tensor(1.), None): told(o, lambda: sae(o), 'expected activations')
        told('no rows to learn from', lambda: sae.loss(torch.zeros(0, 4)), 'expected rows')

def test_half_precision_that_does_not_hold_the_numbers(tmp_path):
    "19_errors_that_mislead: 1e5 saved in float16 is refused, and the older SAE beside it stays."
    sae = SAE(4, 8, L1())
    sae.save(tmp_path/'a')
    sae.b_dec.data[0] = 1e5
    told('float16', lambda: sae.save(tmp_path/'a', torch.float16), 'b_dec', 'float16', '1e+05')
    assert SAE.load(tmp_path/'a').b_dec[0] == 0
    sae.save(tmp_path/'a', torch.bfloat16)
    assert abs(SAE.load(tmp_path/'a').b_dec[0]/1e5 - 1) < .01
    sae.b_dec.data[0] = math.nan
    told('NaN', lambda: sae.save(tmp_path/'a'), 'b_dec', 'NaN')
    sae = SAE(4, 8, L1(), meta=dict(o=object()))
    told('meta', lambda: sae.save(tmp_path/'a'), 'meta')
    told('nan in meta', lambda: SAE(4, 8, meta=[1]), 'meta')

def test_an_sae_of_another_model_or_site_is_refused(tmp_path):
    "19_errors_that_mislead: an SAE of gpt2 for a Mamba; by name, by fingerprint, by site, by width."
    model = Mamba.tiny(seed=0)
    w = dict(W_enc=torch.zeros(24, F), W_dec=torch.zeros(F, 24), b_enc=torch.zeros(F), b_dec=torch.zeros(24))
    gpt2 = lens(tmp_path/'a', w, d_in=24, metadata=dict(model_name='gpt2-small', hook_name='blocks.1.hook_resid_pre'))
    told('name', lambda: SAE.load(gpt2, model=model), 'gpt2-small')
    told('site', lambda: SAE.load(gpt2, site='0.block_out'), '1.resid', 'blocks.1.hook_resid_pre', '0.block_out')
    told('older', lambda: SAE.load(lens(tmp_path/'b', w, d_in=24, model_name='gpt2-small', hook_name='blocks.1.hook_mlp_out'), site='1.resid', model=model), 'gpt2-small')
    for o in (dict(fingerprint='0'*16, model='other'), dict(model='pythia-70m')):
        sae = SAE(24, F, TopK(K), site='1.resid', meta=o)
        told(o, lambda: check_sae(sae, model), o['model'])
        told(o, lambda: evaluate_sae(model, sae, torch.randint(0, 61, (6, 9))), o['model'])
        told(o, lambda: train_saes(dict(a=sae), Harvest(model, Rows(np.arange(400) % 61, length=10), '1.resid', batch=16, capacity=256), SAERecipe(64), progress=False), o['model'])
    told('width', lambda: check_sae(SAE(23, F, TopK(K), site='1.resid'), model), '23', '1.resid')
    check_sae(SAE(24, F, TopK(K), meta=origin(model)), model, site='1.block_out')

def test_saved_again_nothing_is_lost(tmp_path):
    "18_saved_again: hook, model, context and BOS of SAELens's metadata, of both versions; and what nobody knows here."
    about = dict(model_name='mamba-130m', hook_name='blocks.3.hook_resid_pre', context_size=128, prepend_bos=True, seqpos_slice=[None])
    for name, cfg in (('5', about), ('6', dict(metadata=about | dict(sae_lens_version='6.54.12', note='mine')))):
        sae = SAE.load(lens(tmp_path/name, **cfg))
        for again in ('b', 'c'):
            sae.save(tmp_path/name/again)
            sae = SAE.load(tmp_path/name/again)
            after = json.loads((tmp_path/name/again/'cfg.json').read_text())['metadata']
            assert {k: after.get(k) for k in about} == about
        assert name == '5' or after['note'] == 'mine'
        assert str(sae.site) == '3.resid' and sae.meta['model'] == 'mamba-130m'

def test_a_hook_name_is_a_module(tmp_path):
    "18_saved_again: the file names the module that a neighbour hooks, and our site beside it."
    for site, hook in (('5.block_out', 'backbone.layers.5.mixer'), ('5.resid', 'backbone.layers.4'), ('0.resid', 'backbone.embeddings'), ('2.norm', 'backbone.layers.2.norm'), ('3.conv', '3.conv')):
        SAE(4, 8, site=site, activation=L1()).save(tmp_path/'a')
        about = json.loads((tmp_path/'a'/'cfg.json').read_text())['metadata']
        assert (about['hook_name'], about['mamba_interp']['site']) == (hook, site)
        assert str(SAE.load(tmp_path/'a').site) == site
    assert hook_name('3.gate') is None

SAVE = '''
import os, signal, sys
from mamba_interp.sae import SAE, TopK
real, left = os.replace, [int(sys.argv[2])]
def replace(a, b):
    real(a, b)
    left[0] -= 1
    if not left[0]: os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
SAE(24, 96, TopK(8), site='1.resid', seed=2).save(sys.argv[1])
'''

def test_killed_between_two_files(tmp_path):
    "kill_between_files: after a kill at each rename the folder holds the old SAE or the new one, whole."
    old, new = (SAE(24, 96, TopK(8), site='1.resid', seed=o) for o in (1, 2))
    runs = []
    for i in (2, 3, 4):
        old.save(tmp_path/str(i))
        runs.append(subprocess.Popen([sys.executable, '-c', SAVE, tmp_path/str(i), str(i)], env=os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path))))
    assert [o.wait() for o in runs] == 3*[-signal.SIGKILL]
    found = [SAE.load(tmp_path/str(i)).W_dec for i in (2, 3, 4)]
    assert [torch.equal(o, old.W_dec) for o in found] == [True, False, False] and all(torch.equal(o, new.W_dec) for o in found[1:])

def test_layer_norm_and_rescale_are_carried_through(tmp_path):
    "Files before version 6 that normalise each activation: σ and μ are undone in the reconstruction."
    for how, ours in (('layer_norm', 'layer_norm'), ('constant_norm_rescale', 'rescale')):
        sae, w = SAE.load(lens(tmp_path/how, normalize_activations=how)), weights()
        mean, scale = (x.mean(1, keepdim=True), x.std(1, keepdim=True)) if ours == 'layer_norm' else (0., x.norm(dim=1, keepdim=True)/D**.5)
        f = (((x - mean)/(scale + (1e-5 if ours == 'layer_norm' else 0.)) - w['b_dec']) @ w['W_enc'] + w['b_enc']).relu()
        torch.testing.assert_close(sae(x), (f @ w['W_dec'] + w['b_dec'])*scale + mean, atol=1e-5, rtol=1e-5)
        told(how, lambda: sae.decode(sae.encode(x)), 'decode(features, x)')
        told(how, lambda: sae.loss(x), 'trained')
        told(how, lambda: train_saes(dict(a=sae), Planted(width=D), SAERecipe(128), progress=False), 'normalises')

# --- arguments -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('make', [lambda: L1(-1), lambda: L1(math.nan), lambda: Gated('1'), lambda: JumpReLU(bandwidth=0), lambda: JumpReLU(threshold=-1.), lambda: TopK(2.5), lambda: TopK(True), lambda: TopK(0), lambda: TopK(None), lambda: BatchTopK(4, rate=0),
    lambda: BatchTopK(4, rate=2), lambda: Matryoshka(4, 8), lambda: Matryoshka(4, (2.5, 8)), lambda: Matryoshka(4, (8, 4)) and SAE(4, 8, Matryoshka(4, (8, 4))), lambda: SAE(0, 8), lambda: SAE(8, 0), lambda: SAE(8, 10**12, L1()), lambda: SAE(8.5, 8),
    lambda: SAE('8', 8), lambda: SAE(8, 8, TopK), lambda: SAE(8, 8, 'topk'), lambda: SAE(8, 8, TopK(9)), lambda: SAE(8, 64, d_out=0), lambda: SAE(8, 64, site='nowhere'), lambda: SAE(8, 64, normalise='batch')])
def test_arguments_of_an_sae(make):
    "reliability, SAE arguments: sizes, k, coefficients."
    told('arguments', make)

@pytest.mark.parametrize('bad', [dict(tokens=math.nan), dict(tokens=0), dict(tokens=-5), dict(tokens='many'), dict(tokens=True), dict(tokens=1.5), dict(lr=-1), dict(lr=0), dict(lr=math.nan), dict(clip=-1), dict(clip=0), dict(clip=None), dict(dead_after=-1),
    dict(dead_after=0), dict(resample=-1), dict(resample=0), dict(warmup=-.1), dict(warmup=.6, decay=.6), dict(decay=math.nan), dict(l1_warmup=2), dict(aux=-1), dict(length=-1.), dict(length=math.inf), dict(precision='fp8'), dict(precision=None), dict(seed=-1),
    dict(seed=.5), dict(start='yes'), dict(schedule=24), dict(betas=(.9,)), dict(betas=(.9, 1.)), dict(betas=.9), dict(longest=0), dict(longest=math.nan)])
def test_recipes_that_cannot_be_meant(bad):
    "reliability, SAE training: tokens NaN returns [] no more; negative rates, clips and patience; unknown precision."
    told(bad, lambda: SAERecipe(**dict(tokens=1000) | bad), list(bad)[0])

@pytest.mark.parametrize('bad', [dict(start=0), dict(start=2.5), dict(start=8, share=0), dict(start=8, share=math.nan), dict(start=8, share=1.5), dict(start=8, shape='cosine')])
def test_schedules_that_cannot_be_meant(bad):
    "reliability, SAE training: schedules of k."
    told(bad, lambda: KSchedule(**bad), 'KSchedule')

# --- training --------------------------------------------------------------------------------------------------

SITE = '0.resid'
def sae(kind=TopK(3), f=64): return SAE(32, f, kind, site=SITE)
def train(saes=None, source=None, recipe=SAERecipe(20*64), **more): return train_saes(dict(a=sae()) if saes is None else saes, source or Planted(batch=64), recipe, progress=False, log=None, **more)

@pytest.mark.parametrize('name', ['../../evil', '/tmp/evil', 'a/../../b', '', ' ', '..', 'a\0b', 3, None])
def test_names_stay_in_the_folder(name, tmp_path):
    "reliability, SAE training: '../../evil' and absolute names are written nowhere."
    told(name, lambda: train({name: sae()}, folder=tmp_path/'x'/'run'))
    assert not (tmp_path/'evil').exists() and not Path('/tmp/evil').exists()

@pytest.mark.parametrize('call', [lambda: train(every=0), lambda: train(every=-1), lambda: train(every=2.5), lambda: train({}), lambda: train([sae()]), lambda: train(dict(a='house')), lambda: train(recipe=None), lambda: train(recipe=dict(a=None)), lambda: train(recipe=100),
    lambda: train(recipe=dict(b=SAERecipe(100))), lambda: train(source=[torch.zeros(4, 32)]), lambda: train(source=[{SITE: torch.zeros(4, 4, 32)}]), lambda: train(source=[{SITE: torch.zeros(4, 32, dtype=torch.long)}]), lambda: train(source=[{}]), lambda: train(source=[{SITE: 3}])])
def test_calls_that_cannot_be_meant(call):
    "reliability, SAE training: `every=0`, sources and recipes that are none."
    told('call', call)

class Killed(Planted):
    "Stops at a batch."
    def __iter__(self):
        for batch in super().__iter__():
            if self.at > 12: raise KeyboardInterrupt
            yield batch

def begun(folder, **more):
    "A training that was broken off after its second checkpoint."
    with pytest.raises(KeyboardInterrupt): train(source=Killed(batch=64), folder=folder, every=5, **more)
    return folder/'checkpoint.pt'

def test_another_stream_model_or_recipe_is_not_gone_on_with(tmp_path):
    "06_resume_on_another_model: another model, another stream, another recipe, another SAE: refused, naming both."
    begun(tmp_path/'a')
    told('stream', lambda: train(source=Planted(batch=64, seed=1), folder=tmp_path/'a'), 'seed 0 there, 1 here')
    told('recipe', lambda: train(recipe=SAERecipe(20*64, lr=.1), folder=tmp_path/'a'), 'a.lr None there, 0.1 here')
    told('SAE', lambda: train(dict(a=sae(f=96)), folder=tmp_path/'a'), '64', '96')
    told('name', lambda: train(dict(b=sae()), folder=tmp_path/'a'), 'absent')
    other = sae()
    other.meta['fingerprint'] = 'another'
    told('model', lambda: train(dict(a=other), folder=tmp_path/'a'), 'another', 'a.model')
    assert train(folder=tmp_path/'a', every=5)[-1]['tokens'] == 20*64

@pytest.mark.parametrize('change', [lambda o: o.pop('key'), lambda o: o.pop('history'), lambda o: o.pop('learners'), lambda o: o.update(step='ten'), lambda o: o.update(step=-5), lambda o: o.update(tokens=None), lambda o: o.update(learners=[]), lambda o: o.update(sources=[]),
    lambda o: o['learners'][0].pop('sae'), lambda o: o['learners'][0]['sae'].update(W_dec=torch.zeros(3, 3)), lambda o: o['learners'][0].update(scale='x'), lambda o: o.update(sources=[3]), lambda o: o.update(sources=[{}])])
def test_checkpoints_of_other_makes(change, tmp_path):
    "reliability, SAE training: older checkpoints without `key` or `history`, a step that is text, none or other learners."
    file = begun(tmp_path/'a')
    for o in (file, file.with_name('checkpoint-before.pt')):
        saved = torch.load(o)
        change(saved)
        torch.save(saved, o)
    told('checkpoint', lambda: train(folder=tmp_path/'a', every=5), 'checkpoint.pt')

def test_a_checkpoint_from_before_a_setting_was_new_goes_on(tmp_path):
    "A setting that an older checkpoint does not know, and that is not in use, does not stand in the way."
    file = begun(tmp_path/'a')
    saved = torch.load(file)
    del saved['key']['a.longest'], saved['learners'][0]['limit']
    torch.save(saved, file)
    assert train(folder=tmp_path/'a', every=5)[-1]['tokens'] == 20*64

def test_a_folder_has_one_writer(tmp_path):
    "reliability: the second of two processes on one folder is refused."
    from mamba_interp.report import only_writer
    held = subprocess.Popen([sys.executable, '-c', f"from mamba_interp.report import only_writer\nwith only_writer({str(tmp_path/'a')!r}): print('held', flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            env=os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path)))
    assert held.stdout.readline() == b'held\n'
    told('second', lambda: train(folder=tmp_path/'a'), 'another process')
    held.communicate(b'\n')
    assert train(folder=tmp_path/'a')[-1]['tokens'] == 20*64

def test_a_full_disk_is_told_before_the_work(tmp_path, monkeypatch):
    "disk_full: before the first batch."
    import shutil
    (tmp_path/'file').write_text('')
    told('a file', lambda: train(folder=tmp_path/'file'/'run'), 'cannot be written')
    monkeypatch.setattr(shutil, 'disk_usage', lambda o: shutil._ntuple_diskusage(10**6, 10**6, 0))
    class Never(Planted):
        def __iter__(self): pytest.fail('work was begun')
    told('full', lambda: train(source=Never(batch=64), folder=tmp_path/'full'), 'room')

def test_long_activations_are_told_of_and_left_out():
    "16_outliers: FVU in training is told with and without the longest; a recipe leaves them out; the dictionary is found."
    class Outliers(Planted):
        def __iter__(self):
            for batch in super().__iter__():
                (at, x), rng = next(iter(batch.items())), self._draw(10**6 + self.at)
                yield {at: x + (torch.rand(len(x), 1, generator=rng) < .01)*1000*torch.eye(x.shape[1])[3]}
    usual = next(iter(Planted(batch=2048)))[Planted().site]
    fvu = lambda o: (((o(usual) - usual)**2).sum()/((usual - usual.mean(0))**2).sum()).item()
    found = {}
    for longest in (None, 10.):
        made = sae(f=128)
        if longest is None:
            with pytest.warns(UserWarning, match='of the variance'): last = train(dict(a=made), Outliers(batch=512), SAERecipe(512*80, lr=.01))[-1]
        else: last = train(dict(a=made), Outliers(batch=512), SAERecipe(512*80, lr=.01, longest=longest))[-1]
        found[longest] = last['fvu'], last['fvu_ordinary'], fvu(made)
    assert found[None][1] > 2*found[None][0]
    assert found[10.][2] < .7*found[None][2] and found[10.][1] < found[None][1]
    told('nothing left', lambda: train(source=({SITE: o*(1 + .01*torch.randn(8, 32))} for o in (1., 100.)), recipe=SAERecipe(64, longest=2)), 'longer than')

def test_a_threshold_is_kept_in_float32():
    "11_bfloat16: a BatchTopK in half precision follows its threshold, and fires k at use."
    for dtype in (torch.bfloat16, torch.float16):
        made = sae(BatchTopK(4), 128).to(dtype)
        assert made.running.dtype == torch.float32 and made.W_dec.dtype == dtype
    made = SAE(32, 128, BatchTopK(4), site=SITE).bfloat16()
    train(dict(a=made), Planted(batch=256), SAERecipe(256*150, lr=5e-3))
    x = next(iter(Planted(batch=1024, seed=0)))[made.site]
    assert 3 < (made.encode(x) > 0).sum(1).float().mean() < 5.2 and made.running.dtype == torch.float32
    assert made.float().double().running.dtype == torch.float64

def test_default_coefficients_are_sparse():
    "09_default_coefficients: L1, Gated and JumpReLU fire a few features, not half of them."
    saes = {type(o).__name__: sae(o, 128) for o in (L1(), Gated(), JumpReLU())}
    train(saes, Planted(batch=256), SAERecipe(256*200, lr=.01))
    x = next(iter(Planted(batch=1024)))[saes['L1'].site]
    for k,o in saes.items(): assert 1 < (o.encode(x) > 0).sum(1).float().mean() < 13, k

# --- metrics ---------------------------------------------------------------------------------------------------

def test_metrics_refuse_what_they_cannot_measure(tmp_path):
    "reliability: rows that are no tokens, batches of 0, files that are others."
    model, rows = Mamba.tiny(seed=0).requires_grad_(False), torch.randint(0, 61, (6, 9), generator=torch.Generator().manual_seed(0))
    good = SAE(24, F, TopK(3), site='1.resid')
    for bad in (rows.float(), rows > 3, 'text', None, 5, [[1, 2], [1]], rows[0], rows[:0]): told(bad, lambda: evaluate_sae(model, good, bad))
    for bad in (dict(batch=0), dict(batch=2.5), dict(skip=-1), dict(skip='BOS'), dict(skip=9), dict(skip=1.5)): told(bad, lambda: evaluate_sae(model, good, rows, **bad))
    for bad in ({}, dict(a=None), dict(a='house'), [good]): told(bad, lambda: evaluate_saes(model, bad, rows))
    found = evaluate_sae(model, good, rows)
    found.save(tmp_path/'a.json')
    text = json.loads((tmp_path/'a.json').read_text())
    for change in (dict(values=[]), dict(values=dict(fvu=[1])), dict(values=dict(fvu='x')), dict(density='x'), dict(setup={}), dict(notes=None), dict(what='other'), dict(draws=3)):
        (tmp_path/'b.json').write_text(json.dumps(text | change))
        told(change, lambda: Metrics.load(tmp_path/'b.json'), 'b.json')
    for bad in ([], [2.], [math.nan], [[.1]]): told(bad, lambda: density_histogram(bad, 100))

def test_fvu_of_the_ordinary_and_of_the_middle():
    "16_outliers and 05_saes_on_english: a few long activations do not hide the rest."
    model, rows = Mamba.tiny(seed=0).double().requires_grad_(False), torch.randint(0, 60, (20, 12), generator=torch.Generator().manual_seed(0))
    rows[0, 5] = 60
    model.embeddings.weight[60] = 1e4*torch.ones(24)
    sae = SAE(24, F, TopK(1), site='0.resid').double().requires_grad_(False)
    sae.W_dec[0] = sae.W_enc[0] = torch.ones(24)/24**.5
    found = evaluate_sae(model, sae, rows)
    assert found['fvu'][0] < 1e-3 < .3 < found['fvu_ordinary'][0] and found['fvu_median'][0] > .3

@pytest.mark.parametrize('says,call', [('one and the same SAE', lambda: train((lambda o: dict(a=o, b=o))(sae()))), ('without rows', lambda: train(source=[{SITE: torch.zeros(0, 32)}])), ("needs 0.resid, but the source gives 1.resid", lambda: train(source=[{SITE: torch.randn(64, 32)}, {'1.resid': torch.randn(64, 32)}])), ('have width 31', lambda: train(source=[{SITE: torch.randn(64, 32)}, {SITE: torch.randn(64, 31)}])),
    ('nothing to learn', lambda: train(source=[{SITE: torch.zeros(64, 32)}]*30)), ('nothing to learn', lambda: train(source=[{SITE: torch.ones(64, 32)}]*30)), ('the source is a int', lambda: train(source=3))], ids=lambda o: o if isinstance(o, str) else '')
def test_batches_that_nothing_can_be_learnt_from(says, call):
    "reliability, SAE training: one SAE under two names, batches that change on the way, activations that are all the same."
    told(says, call, says)

def test_a_threshold_that_is_said_twice(tmp_path):
    "03_tensors_that_are_not_used: of a BatchTopK the tensors and cfg.json hold the running threshold; they have to agree."
    made = SAE(8, 16, BatchTopK(2), site=SITE)
    made.running.fill_(.5)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        made.save(tmp_path/str(dtype), dtype)
        assert abs(SAE.load(tmp_path/str(dtype)).running - .5) < .01
    file = tmp_path/'torch.float32'/'cfg.json'
    file.write_text(file.read_text().replace('"running": 0.5', '"running": 5.0'))
    told('threshold', lambda: SAE.load(tmp_path/'torch.float32'), 'contradicts itself', '0.5')
    file.write_text(file.read_text().replace('"running": 5.0', '"running": "x"'))
    told('threshold', lambda: SAE.load(tmp_path/'torch.float32'), "'running'")

@pytest.mark.parametrize('name', ['a'*5000, '\ud800', 'a/'*3000])
def test_names_that_no_disk_holds(name): told(name[:9], lambda: SAE.load(name))
