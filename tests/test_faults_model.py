"What a model is given comes out right or is refused in one sentence; what it writes is at every moment whole."
import copy, errno, json, math, os, signal, sys, warnings
from pathlib import Path

import numpy as np
import pytest, torch
import transformers
from safetensors.torch import load_file, save_file
from mamba_interp import model as M
from mamba_interp.model import Mamba, check_config, config_of, enough_memory, fingerprint, left_pad, to_transformers
from mamba_interp.sites import Site, match_sites, token_index
from mamba_interp.taps import Adapter, Tap, ablate, chain, mean_over_prompts, record, replace, steer

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
REFUSED = (ValueError, TypeError, OSError)

def says(*words):
    "A context that wants one error of one line that holds all the words."
    return _Says(words)

class _Says:
    def __init__(self, words): self.words = words
    def __enter__(self): return self
    def __exit__(self, kind, error, trace):
        assert kind is not None, f'nothing was raised; expected {self.words}'
        text = str(error)
        assert issubclass(kind, REFUSED) and '\n' not in text and len(text) < 500, f'{kind.__name__}: {text}'
        assert all(str(o) in text for o in self.words), f'{self.words} are not all in: {text}'
        return True

@pytest.fixture
def model(): return Mamba.tiny(seed=3).double().requires_grad_(False)

@pytest.fixture
def model2(): return Mamba.tiny(seed=3, kind=2).double().requires_grad_(False)

def ids(*shape, seed=1): return torch.randint(1, 61, shape, generator=torch.Generator().manual_seed(seed))

def saved(folder, kind=1, **changes):
    "A checkpoint with some fields of its configuration changed."
    Mamba.tiny(kind=kind, num_hidden_layers=2).save(folder)
    config = json.loads((folder/'config.json').read_text())
    (folder/'config.json').write_text(json.dumps({k: v for k,v in (config | changes).items() if v != 'drop'}))
    return folder

# configurations

WRONG = [dict(hidden_size=0), dict(hidden_size=-24), dict(hidden_size=24.5), dict(hidden_size='24'), dict(hidden_size=None), dict(hidden_size=True),
    dict(hidden_size=10**12), dict(vocab_size=10**12), dict(state_size=10**12), dict(num_hidden_layers=10**12), dict(num_hidden_layers=10**6), dict(conv_kernel=10**12),
    dict(num_hidden_layers=0), dict(conv_kernel=0), dict(conv_kernel=-1), dict(state_size=0), dict(expand=0), dict(expand=1.5), dict(vocab_size=[61]),
    dict(layer_norm_epsilon=math.nan), dict(layer_norm_epsilon=math.inf), dict(layer_norm_epsilon=0), dict(layer_norm_epsilon=-1e-5), dict(layer_norm_epsilon=1e30), dict(layer_norm_epsilon='1e-5'),
    dict(time_step_rank=0), dict(time_step_rank='all'), dict(time_step_rank=10**12), dict(time_step_min=-1.), dict(time_step_max=math.nan), dict(time_step_min=.5),
    dict(use_bias='no'), dict(use_bias=1), dict(tie_word_embeddings=None), dict(residual_in_fp32='false'), dict(hidden_act='gelu'), dict(hidden_act=3)]
WRONG2 = [dict(num_heads=5), dict(head_dim=0), dict(head_dim=7), dict(n_groups=0), dict(n_groups=4), dict(n_groups=2.), dict(time_step_limit=[.2, .1]), dict(time_step_limit=[0.]),
    dict(time_step_limit=5), dict(time_step_limit=[0, 'Infinity']), dict(time_step_limit=[math.nan, 1.]), dict(time_step_limit=[-1., 1.]), dict(time_step_limit=None)]

@pytest.mark.parametrize('kind,change', [(1, o) for o in WRONG] + [(2, o) for o in WRONG2], ids=str)
def test_configuration_fields(tmp_path, kind, change):
    "checkpoint_variants: a size, a switch or a limit that cannot be meant is refused by file and field, before anything is allocated."
    field = next(iter(change))
    with says('config.json', 'time_step' if 'time_step' in field else field): Mamba.load(saved(tmp_path, kind, **change))
    with says('time_step' if 'time_step' in field else field): Mamba.tiny(kind=kind, **change)

@pytest.mark.parametrize('text', ['[1]', 'null', '3', '"mamba"', '', '{', '{"model_type": "mamba",}', '['*10**5, '{"a": 1}', '{}', '{"model_type": "gpt2"}', '{"model_type": ["mamba"]}',
    '{"model_type": null}', '{"model_type": "falcon_mamba"}', '{"d_model": 24, "n_layer": 2}', '{"d_model": "24", "n_layer": 2, "vocab_size": 61}', '{"d_model": 24, "n_layer": null, "vocab_size": 61}',
    '{"d_model": 24, "n_layer": 2, "vocab_size": 61, "ssm_cfg": [1]}', '{"model_type": "mamba", "id2label": 5}', '{"model_type": "mamba", "dtype": 7}'])
def test_configuration_files(tmp_path, text):
    "checkpoint_variants: a config.json that is no configuration of a Mamba is refused by the file's name."
    (tmp_path/'config.json').write_text(text)
    with says('config.json'): config_of(tmp_path)

def test_configuration_bytes(tmp_path):
    "checkpoint_variants: bytes that are no text, a folder in the file's place, and a mark at the beginning."
    (tmp_path/'config.json').write_bytes(b'\xff\xfe{}')
    with says('config.json', 'UTF-8'): config_of(tmp_path)
    (tmp_path/'config.json').unlink()
    (tmp_path/'config.json').mkdir()
    with says('config.json'): Mamba.load(tmp_path)
    good = saved(tmp_path/'good')
    (good/'config.json').write_bytes(b'\xef\xbb\xbf' + (good/'config.json').read_bytes())
    assert config_of(good).hidden_size == 24

def test_configurations_by_hand():
    "checkpoint_variants: the same check for a configuration that no file holds."
    for wrong in (None, 'house', {}, 3, transformers.GPT2Config()):
        with says('amba'): Mamba(wrong)
    config = transformers.MambaConfig(hidden_size=24, vocab_size=61)
    config.layer_norm_epsilon = math.nan
    with says('layer_norm_epsilon is nan'): Mamba(config)
    with says('hidden_size', 'bytes'): Mamba(transformers.MambaConfig(hidden_size=10**12))
    with says('bytes'): Mamba(transformers.MambaConfig(vocab_size=61, hidden_size=2**17, num_hidden_layers=9))
    with says('hiden_size', "did you mean 'hidden_size'"): Mamba.tiny(hiden_size=3)
    with says('kind is 3'): Mamba.tiny(kind=3)

def mamba_ssm(folder, ssm=None, **top):
    "A `mamba_ssm` checkpoint of a tiny model; the model."
    ssm = ssm or {}
    kind = 2 if ssm.get('layer') == 'Mamba2' else 1
    fields = dict(vocab_size=64, num_hidden_layers=2, tie_word_embeddings=True, state_size=5, use_bias=bool(ssm.get('bias')), use_conv_bias=ssm.get('conv_bias', True))
    if 'dt_limit' in ssm: fields['time_step_limit'] = ssm['dt_limit']
    if kind == 2: fields |= dict(n_groups=1)
    model = Mamba.tiny(kind=kind, **fields).double().requires_grad_(False)
    for p in model.parameters(): p += .3*torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    cfg = dict(d_state=5, **(dict(headdim=8) if kind == 2 else {}), **ssm)
    folder.mkdir(exist_ok=True)
    (folder/'config.json').write_text(json.dumps(dict(d_model=24, n_layer=2, vocab_size=61, pad_vocab_size_multiple=16, ssm_cfg=cfg) | top))
    torch.save({k.replace('embeddings', 'embedding'): v for k,v in to_transformers(model.state_dict()).items()}, folder/'pytorch_model.bin')
    return model

@pytest.mark.parametrize('ssm', [{}, dict(bias=True), dict(conv_bias=False), dict(layer='Mamba2', dt_limit=[.05, .2]), dict(layer='Mamba2', dt_limit=[0., math.inf]),
    dict(layer='Mamba2', bias=True, conv_bias=False), dict(dt_min=.01, dt_init='constant', use_fast_path=False), dict(layer='Mamba2', chunk_size=64, D_has_hdim=False, process_group=None)], ids=str)
def test_ssm_cfg_is_followed(tmp_path, ssm):
    "ssm_cfg_ignored: settings that a model here has are followed; those of initialisation and speed make no difference."
    want = mamba_ssm(tmp_path, ssm)
    found = Mamba.load(tmp_path, dtype=torch.float64)
    assert (found(ids(2, 9)) - want(ids(2, 9))).abs().max() < 1e-12

@pytest.mark.parametrize('key,ssm', [(k, {'layer': 'Mamba2', 'headdim': 8, k: v}) for k,v in dict(norm_before_gate=True, rmsnorm=False, D_has_hdim=True, d_ssm=16, dt_limit=[.2, .1], ngroups=4, headdim=7, some_gate='sigmoid').items()]
    + [('layer', dict(layer='Mamba3')), ('dt_limit', dict(dt_limit=[.1, .2])), ('b_c_dt_rms', dict(b_c_dt_rms=True)), ('conv_bias', dict(conv_bias='no')), ('expand', dict(expand='x'))], ids=str)
def test_ssm_cfg_is_refused(tmp_path, key, ssm):
    "ssm_cfg_ignored: a setting that changes the computation and that no model here has is refused by its name."
    mamba_ssm(tmp_path, {})
    config = json.loads((tmp_path/'config.json').read_text())
    (tmp_path/'config.json').write_text(json.dumps(config | dict(ssm_cfg=config['ssm_cfg'] | ssm)))
    said = dict(conv_bias='use_conv_bias', dt_limit='limit', ngroups='n_groups').get(key, key)
    with says('config.json', said): Mamba.load(tmp_path)

@pytest.mark.parametrize('top', [dict(attn_layer_idx=[1]), dict(d_intermediate=64), dict(rms_norm=False), dict(logit_scale=2.), dict(pad_vocab_size_multiple=0.5), dict(tie_embeddings='yes')], ids=str)
def test_mamba_ssm_top(tmp_path, top):
    "ssm_cfg_ignored: likewise beside ssm_cfg."
    mamba_ssm(tmp_path, {}, **top)
    with says('config.json', dict(tie_embeddings='tie_word_embeddings').get(*[next(iter(top))]*2)): Mamba.load(tmp_path)

# weights

def change(folder, edit, file='model.safetensors'):
    "The checkpoint with other tensors; `edit` takes and returns the dict."
    W = edit(load_file(folder/'model.safetensors'))
    (folder/'model.safetensors').unlink()
    if file.endswith('safetensors'): save_file(W, folder/file, metadata=dict(format='pt'))
    else: torch.save(W, folder/file)
    return folder

OUT = 'backbone.layers.1.mixer.out_proj.weight'
KINDS = dict(int8=lambda o: o.to(torch.int8), bool=lambda o: o > 0, uint8=lambda o: o.to(torch.uint8), int64=lambda o: o.long(), complex=lambda o: o.to(torch.complex64), float8=lambda o: o.to(torch.float8_e4m3fn))

@pytest.mark.parametrize('kind', KINDS)
def test_kinds_of_weights(tmp_path, kind):
    "checkpoint_variants: weights that are no floating numbers are refused by name and type."
    with says('layers.1.out_proj.weight', 'torch.', 'float32'): Mamba.load(change(saved(tmp_path), lambda W: W | {OUT: KINDS[kind](W[OUT])}))

@pytest.mark.parametrize('edit,words', [
    (lambda W: {k: v for k,v in W.items() if k != OUT}, ['missing', 'layers.1.out_proj']), (lambda W: W | {'backbone.extra': torch.zeros(2)}, ['unexpected', 'extra']), (lambda W: {}, ['missing']),
    (lambda W: W | {OUT: W[OUT].T.contiguous()}, ['(48, 24)', 'expected (24, 48)']), (lambda W: W | {OUT: W[OUT][0]}, ['expected (24, 48)']), (lambda W: W | {OUT: W[OUT]*math.nan}, ['NaN']),
    (lambda W: W | {OUT: W[OUT].double()*1e300}, ['not finite', 'float32']), (lambda W: W | {OUT: W[OUT] + math.inf}, ['not finite']), (lambda W: W | {'lm_head.weight': W['backbone.embeddings.weight'] + 1}, ['tie_word_embeddings', 'lm_head'])])
def test_weights_that_do_not_fit(tmp_path, edit, words):
    "checkpoint_variants: missing, extra, misshapen, infinite (also once converted) and untied tensors."
    with says(*words): Mamba.load(change(saved(tmp_path), edit))

@pytest.mark.parametrize('edit', [lambda W: list(W.values()), lambda W: 3, lambda W: None, lambda W: {}, lambda W: W | {'step': 3}, lambda W: {3: torch.zeros(2)}, lambda W: W | {OUT: W[OUT].to_sparse()},
    lambda W: W | {OUT: W[OUT].to('meta')}, lambda W: W | {OUT: W[OUT].to_sparse_csr()}, lambda W: torch.zeros(3), lambda W: W | {OUT: torch.nested.nested_tensor([W[OUT], W[OUT][1:]])}])
def test_bin_files(tmp_path, edit):
    "checkpoint_variants: a .bin that is no dict of ordinary tensors."
    with says(str(tmp_path)), warnings.catch_warnings(action='ignore'): Mamba.load(change(saved(tmp_path), edit, 'pytorch_model.bin'))

@pytest.mark.parametrize('data', [b'', b'x', b'\x80\x02}', b'PK\x03\x04', (8).to_bytes(8, 'little') + b'{"a": 1}', (2**60).to_bytes(8, 'little'), b'\0'*64])
@pytest.mark.parametrize('name', ['model.safetensors', 'pytorch_model.bin'])
def test_damaged_weights(tmp_path, name, data):
    "checkpoint_variants: what is no weights file."
    (saved(tmp_path)/'model.safetensors').unlink()
    (tmp_path/name).write_bytes(data)
    with says(name): Mamba.load(tmp_path)

def test_weights_in_parts(tmp_path):
    "checkpoint_variants: an index whose shard is missing, or elsewhere, or that is no index."
    W = load_file(saved(tmp_path)/'model.safetensors')
    want = Mamba.load(tmp_path)(ids(2, 5))
    names = sorted(W)
    (tmp_path/'model.safetensors').unlink()
    parts = {'a.safetensors': names[:9], 'b.safetensors': names[9:]}
    for part, each in parts.items(): save_file({k: W[k] for k in each}, tmp_path/part)
    index = tmp_path/'model.safetensors.index.json'
    good = {k: part for part, each in parts.items() for k in each}
    index.write_text(json.dumps(dict(weight_map=good)))
    assert torch.equal(Mamba.load(tmp_path)(ids(2, 5)), want) or (Mamba.load(tmp_path)(ids(2, 5)) - want).abs().max() < 1e-5
    for wrong in (good | {names[0]: 'c.safetensors'}, good | {names[0]: '../a.safetensors'}, good | {names[0]: '/etc/passwd'}, good | {names[0]: 3}, good | {'more': 'a.safetensors'}, {}, [1], 'a'):
        index.write_text(json.dumps(dict(weight_map=wrong)))
        with says(str(tmp_path)): Mamba.load(tmp_path)
    for text in ('[]', 'null', '{}', '{'):
        index.write_text(text)
        with says('index.json'): Mamba.load(tmp_path)

def test_names_of_weights(tmp_path):
    "checkpoint_variants: prefixes of trainers, a trainer's file and a file with one end of a tied pair are the same model."
    want = Mamba.load(saved(tmp_path/'as saved'))(ids(2, 5))
    tied = lambda W: {k.replace('backbone.embeddings', 'lm_head'): v for k,v in W.items()}
    for i, edit in enumerate((lambda W: {f'module.{k}': v for k,v in W.items()}, lambda W: {f'_orig_mod.{k}': v for k,v in W.items()}, lambda W: dict(model=W, step=3), lambda W: dict(state_dict=W), tied)):
        found = Mamba.load(change(saved(tmp_path/str(i)), edit, 'pytorch_model.bin'))(ids(2, 5))
        assert (found - want).abs().max() < 1e-5

# names and devices

@pytest.mark.parametrize('name', ['', ' ', None, 3, b'house', ['house'], '~nobody/x', 'a\0b', 'x'*5000, '/no/such/folder', '~nobody'])
def test_names(name):
    "checkpoint_variants: names that are none."
    with says(): Mamba.load(name)
    if name is not None:
        with says(): Adapter(name)

def test_devices_and_types(tmp_path):
    "checkpoint_variants: devices and types that no weights can have, and a file in a folder's place."
    for device in ('gpu', 'cuda:99', '', 3.5, 'meta', ['cpu']):
        with says('device'): Mamba.load('house', device=device)
    for dtype in ('fp8', torch.int8, torch.complex64, 'float8', 3, torch.bool):
        with says('dtype'): Mamba.load('house', dtype=dtype)
    with says('revision'): Mamba.load('house', revision=3)
    (tmp_path/'file').write_text('x')
    with says('is a file'): Mamba.load(tmp_path/'file')
    assert Mamba.load('house', dtype='bfloat16').dtype == torch.bfloat16

# tokens

@pytest.mark.parametrize('tokens', ['Mary', ['Mary', 'John'], [['a']], None, 3, [], [[]], [3, 4], [[1, 2], [3]], [[1.5]], [[10**30]], torch.tensor([[1.]]), torch.tensor([[True]]), torch.zeros(2, 0, dtype=torch.long), torch.zeros(0, 2, dtype=torch.long),
    torch.tensor([1, 2]), torch.zeros(1, 1, 1, dtype=torch.long), torch.tensor([[61]]), torch.tensor([[-1]]), torch.eye(3).long().to_sparse(), torch.zeros(1, 2, dtype=torch.long, device='meta'), np.zeros((1, 2)), np.array([['a']]),
    dict(input_ids=[[1]]), {1, 2}, torch.tensor([[1j]]), torch.nested.nested_tensor([torch.tensor([1]), torch.tensor([1, 2])])], ids=lambda o: str(o)[:30].replace('\n', ' '))
@pytest.mark.filterwarnings('ignore')
def test_tokens(model, tokens):
    "unequal_prompts: what is no batch of prompts is refused by every call that reads tokens."
    for call in (model, model.embed_tokens, model.generate, lambda o: record(model, o, '0.resid')):
        with says(): call(tokens)

def test_other_tokens(model):
    "unequal_prompts: integers of any type, arrays and lists are the same prompts."
    tokens = ids(2, 7)
    for same in (tokens.to(torch.int8), tokens.to(torch.int16), tokens.to(torch.uint8), tokens.int(), tokens.numpy(), tokens.numpy().astype('uint16'), tokens.tolist(), list(tokens), tokens.numpy()[:, ::-1][:, ::-1]): assert torch.equal(model(same), model(tokens))

@pytest.mark.parametrize('at', [7, -8, 2.5, True, 'end', [1, 7], [1], torch.tensor([1, 7]), torch.tensor([1, 2, 3]), torch.tensor([1., 2.]), torch.tensor([[1, 2]])], ids=str)
def test_token_indices(model, at):
    "Positions: an index that the run does not have is refused where it is used."
    with says(): model(ids(2, 7), at=at)
    with says(): model.unembed(model.embed_tokens(ids(2, 7)), at)
    if not (at == [1] if isinstance(at, list) else False):
        with says(): model(ids(2, 7), ablate(model, '1.x', at=at))

def test_negative_token_indices(model):
    "Positions: a negative index counts from the end in every call."
    x = ids(2, 7)
    assert torch.equal(model(x, at=-2), model(x, at=5)) and torch.equal(model(x, at=torch.tensor([-1, 3])), model(x, at=torch.tensor([6, 3])))
    for a, b in ((Site('state', 1, -3), Site('state', 1, 4)), ('1.state@-3', '1.state@4')): assert torch.equal(model(x, {a: torch.neg}), model(x, {b: torch.neg}))
    assert torch.equal(model(x, ablate(model, '1.x', at=[-1, 0])), model(x, ablate(model, '1.x', at=[6, 0])))
    with says('1.state@7', '0 to 6'): model(x, {'1.state@7': torch.neg})
    with says('1.state@-8', '0 to 6'): model(x, {Site('state', 1, -8): torch.neg})

@pytest.mark.parametrize('taps', [{'1.cnv': torch.neg}, {3: torch.neg}, {Site('x', '1'): torch.neg}, {Site('x', 9): torch.neg}, {Site('x', 1): 3}, [1], {Site('x', 1, 2): torch.neg}, {('x', 1): torch.neg},
    {Site('x', 1): torch.neg, '1.x': torch.neg}, {'1.x': lambda v: None}, {'1.x': lambda v: v[:1]}, {'1.x': lambda v: v*1j}, {'1.state@2.5': torch.neg}], ids=lambda o: str(o)[:40])
def test_taps(model, taps):
    "Taps that would do nothing, or what nobody meant."
    with says(): model(ids(2, 7), taps)

@pytest.mark.parametrize('options', [dict(n=-1), dict(n=2.5), dict(n='3'), dict(n=None), dict(temperature=-1), dict(temperature=math.nan), dict(temperature=math.inf), dict(temperature=1e-40), dict(temperature='hot'), dict(seed=-1), dict(seed=1.5),
    dict(taps={'1.state@12': torch.neg}), dict(taps={'1.attention': torch.neg}), dict(attention_mask=torch.ones(2, 6)), dict(taps={'final_norm': lambda v: v*math.nan})], ids=str)
def test_generate_settings(model, options):
    "generate_prompt_tap: numbers that cannot be meant, a token that is never read, a site that a new token has not."
    with says(): model.generate(ids(2, 7), **dict(n=3) | options)

# half precision

@pytest.mark.parametrize('kind', [1, 2])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(kind, dtype):
    "half_precision_scores: every way through the forward gives what float32 gives, to the type's precision."
    full = Mamba.tiny(kind=kind, seed=2).requires_grad_(False)
    half, x = copy.deepcopy(full).to(dtype), ids(3, 11)
    want, bar = full(x), 6*torch.finfo(dtype).eps
    off = lambda o: ((o.float() - want).norm()/want.norm()).item()
    own = {s: (lambda v: v.clone()) for s in half.sites()}
    first = half.run(half.embed_tokens(x[:, :4]))
    rest = half.run(half.embed_tokens(x[:, 4:]), past=first[1])
    assert max(off(half(x)), off(half(x, own)), off(half(x, replace(record(half, x)))), off(half.unembed(torch.cat([first[0], rest[0]], 1)))) < bar
    assert max(off(half(x, {s: f})) for s, f in own.items()) < bar
    assert half.generate(x, 3, temperature=1., seed=0).shape == (3, 14)
    with torch.autocast('cpu', dtype=dtype): assert max(off(full(x)), off(full(x, own))) < bar
    with torch.inference_mode(): assert max(off(full(x)), off(full(x, own))) < 1e-6

def test_saved_type(tmp_path):
    "checkpoint_variants: a checkpoint says the type in which it is written, and saving changes no configuration in memory."
    Mamba.tiny().to(torch.bfloat16).save(tmp_path/'half')
    assert json.loads((tmp_path/'half/config.json').read_text())['dtype'] == 'bfloat16'
    full = Mamba.load(tmp_path/'half')
    full.save(tmp_path/'full')
    assert json.loads((tmp_path/'full/config.json').read_text())['dtype'] == 'float32'
    theirs = transformers.MambaForCausalLM.from_pretrained(tmp_path/'full')
    assert theirs.dtype == torch.float32
    model = Mamba.tiny(kind=2, time_step_limit=(.01, math.inf))
    before = model.config.to_dict()
    model.save(tmp_path/'two')
    assert model.config.to_dict() == before and tuple(config_of(tmp_path/'two').time_step_limit) == (.01, math.inf)
