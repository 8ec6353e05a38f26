"What a model is given comes out right or is refused in one sentence; what it writes is at every moment whole."
import copy, errno, json, math, os, signal, sys, warnings
from pathlib import Path

import numpy as np
import pytest, torch
import transformers
from safetensors.torch import load_file, save_file
from mamba_interp.model import (Adapter, Mamba, Site, Tap, ablate, chain, check_config, config_of,
                                enough_memory, fingerprint, from_checkpoint, left_pad, match_sites, mean_over_prompts, record,
                                replace, split_block_out, steer, to_transformers, token_index)

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

@pytest.mark.parametrize('width', (36, 47, 96, 10**9))
def test_a_width_that_expand_contradicts(tmp_path, width):
    "checkpoint_variants: intermediate_size beside another expand; alone, as a multiple, it says what expand is."
    with says('config.json', 'intermediate_size', 'expand'): Mamba.load(saved(tmp_path, intermediate_size=width))
    with says('intermediate_size', 'expand'): Mamba(transformers.MambaConfig(hidden_size=24, vocab_size=61, intermediate_size=width))
    with says('config.json', 'expand'): Mamba.load(saved(tmp_path, expand=3))
    assert config_of(saved(tmp_path, expand='drop')).expand == 2
    assert config_of(saved(tmp_path, expand='drop', intermediate_size=72)).expand == 3

@pytest.mark.parametrize('text', ['[1]', 'null', '3', '"mamba"', '', '{', '{"model_type": "mamba",}', '['*10**5, '{"a": 1}', '{}', '{"model_type": "gpt2"}', '{"model_type": ["mamba"]}',
    '{"model_type": null}', '{"model_type": "falcon_h1"}', '{"d_model": 24, "n_layer": 2}', '{"d_model": "24", "n_layer": 2, "vocab_size": 61}', '{"d_model": 24, "n_layer": null, "vocab_size": 61}',
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
    if at != [1] if isinstance(at, list) else True: # a list means these tokens of every prompt, so [1] is one
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

@pytest.mark.parametrize('options', [dict(n=-1), dict(n=2.5), dict(n='3'), dict(n=None), dict(n=10**9), dict(n=1_000_001), dict(temperature=-1), dict(temperature=math.nan), dict(temperature=math.inf), dict(temperature=1e-40), dict(temperature='hot'), dict(seed=-1), dict(seed=1.5),
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

# tokenizers

def word_tokenizer(n=10):
    "A tokenizer of n words."
    from tokenizers import Tokenizer, models, pre_tokenizers
    inner = Tokenizer(models.WordLevel({'<unk>': 0, **{f'w{i}': i for i in range(1, n)}}, unk_token='<unk>'))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token='<unk>')

@pytest.mark.parametrize('file,data', [('tokenizer.json', o) for o in (b'', b'{', b'null', b'[]', b'3', b'\xff\xfe\0', b'{}', b'{"version": "1.0"}', b'{"model": null}')]
    + [('tokenizer_config.json', o) for o in (b'{', b'[1]', b'\xff')], ids=str)
def test_tokenizer_files(tmp_path, file, data):
    "checkpoint_variants: a damaged tokenizer is told as such, by reading and by saving, and can be set aside."
    model = Mamba.tiny()
    model.tokenizer = word_tokenizer()
    model.save(tmp_path)
    assert Mamba.load(tmp_path).tokenizer.encode('w3 w4') == [3, 4]
    (tmp_path/file).write_bytes(data)
    model = Mamba.load(tmp_path)
    with says('tokenizer', str(tmp_path)): model.tokenizer
    with says('tokenizer', str(tmp_path)): model.save(tmp_path/'again')
    assert not (tmp_path/'again').exists()
    model.tokenizer = None
    assert model.tokenizer is None
    model.save(tmp_path/'again')
    assert Mamba.load(tmp_path/'again').tokenizer is None

def test_tokenizers_that_do_not_fit(tmp_path):
    "checkpoint_variants: one that is larger than the model, and one of which only the settings are there."
    model = Mamba.tiny()
    model.tokenizer = word_tokenizer(70)
    model.save(tmp_path)
    with says('70 tokens', '61'): Mamba.load(tmp_path).tokenizer
    (tmp_path/'tokenizer.json').unlink()
    with says('tokenizer_config.json', 'tokenizer.json'): Mamba.load(tmp_path).tokenizer

def test_save_asks_no_server(tmp_path, monkeypatch):
    "checkpoint_variants: a released vocabulary without a tokenizer is saved without one; asked for, it is one sentence offline."
    model = Mamba.tiny(vocab_size=50280, hidden_size=16, num_hidden_layers=1)
    model.save(tmp_path)
    def ask(*args, **kwargs): raise OSError('offline')
    monkeypatch.setattr(transformers.AutoTokenizer, 'from_pretrained', ask)
    found = Mamba.load(tmp_path)
    found.save(tmp_path/'again')
    assert (tmp_path/'again/model.safetensors').exists()
    with says('gpt-neox-20b'): found.tokenizer

# saving

def killed(work):
    "Do `work` in a child process that may kill itself; whether it was killed."
    child = os.fork()
    if not child:
        try: work()
        finally: os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])

@pytest.mark.parametrize('at', range(1, 8))
def test_save_is_one_step(tmp_path, at):
    "kill_between_files: killed at any rename, the folder holds the old model or the new one, with its own configuration."
    old, new = Mamba.tiny(seed=1), Mamba.tiny(seed=2, num_hidden_layers=4)
    old.tokenizer, new.tokenizer = word_tokenizer(10), word_tokenizer(12)
    old.save(tmp_path)
    def work():
        seen, real = [], os.replace
        def replace(a, b):
            real(a, b)
            seen.append(b)
            if len(seen) == at: os.kill(os.getpid(), signal.SIGKILL)
        os.replace = replace
        new.save(tmp_path)
    killed(work)
    found = Mamba.load(tmp_path)
    assert fingerprint(found) in (fingerprint(old), fingerprint(new))
    assert len(found.tokenizer) == (10 if fingerprint(found) == fingerprint(old) else 12)

def test_save_killed_in_a_file(tmp_path, monkeypatch):
    "kill_between_files: killed while the weights are written, or just after, the old model is whole."
    import safetensors.torch
    old = Mamba.tiny(seed=1)
    old.save(tmp_path)
    for whole in (True, False):
        def work():
            real = safetensors.torch.save_file
            def write(tensors, path, **options):
                real(tensors, path, **options)
                if not whole: os.truncate(path, 1000)
                os.kill(os.getpid(), signal.SIGKILL)
            safetensors.torch.save_file = write
            Mamba.tiny(seed=2, num_hidden_layers=4).save(tmp_path)
        assert killed(work) and fingerprint(Mamba.load(tmp_path)) == fingerprint(old)
    Mamba.tiny(seed=2).save(tmp_path)
    assert fingerprint(Mamba.load(tmp_path)) == fingerprint(Mamba.tiny(seed=2))

def test_save_where_there_is_no_room(tmp_path, monkeypatch):
    "disk_full: a full disk is told before anything is written, a folder that cannot be written in one sentence; the old model stays."
    import shutil
    old = Mamba.tiny(seed=1)
    old.save(tmp_path/'m')
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: usage._replace(free=10_000))
    with says(str(tmp_path/'m'), 'room'): Mamba.tiny(seed=2).save(tmp_path/'m')
    monkeypatch.undo()
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with says(str(tmp_path/'m'), 'No space left'): Mamba.tiny(seed=2).save(tmp_path/'m')
    monkeypatch.undo()
    assert fingerprint(Mamba.load(tmp_path/'m')) == fingerprint(old)
    (tmp_path/'file').write_text('x')
    for wrong in (tmp_path/'file', '/proc/none', '', None, 3):
        with says(): old.save(wrong)

# prompts of unequal length

@pytest.mark.parametrize('kind', [1, 2])
@pytest.mark.parametrize('options', [{}, dict(use_bias=True), dict(use_conv_bias=False, conv_kernel=2), dict(residual_in_fp32=False)], ids=str)
def test_padded_prompts(kind, options):
    "unequal_prompts: in a padded batch each prompt gets what it gets alone, whatever fills it up, at every site and in every continuation."
    model = Mamba.tiny(kind=kind, seed=4, **options).double().requires_grad_(False)
    for p in model.parameters(): p += .2*torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=p.dtype)
    prompts = [ids(n, seed=n) for n in (1, 2, 5, 9)]
    for pad in (0, 17):
        tokens, mask = left_pad(prompts, pad)
        logits, grown = model(tokens, attention_mask=mask), model.generate(tokens, 4, attention_mask=mask)
        stepwise = model(tokens, {s: (lambda v: v + 0) for s in model.sites('*.state')}, attention_mask=mask)
        seen = record(model, tokens, ['1.resid', '1.state', 'final_norm'], attention_mask=mask)
        for row, prompt in enumerate(prompts):
            alone, n = model(prompt[None])[0], len(prompt)
            assert (logits[row, -n:] - alone).abs().max() < 1e-11 and (stepwise[row, -n:] - alone).abs().max() < 1e-11
            assert torch.equal(grown[row, -4:], model.generate(prompt[None], 4)[0, -4:])
            for site, value in record(model, prompt[None], list(seen)).items(): assert (seen[site][row, -n:] - value[0]).abs().max() < 1e-11
    assert (model(tokens, at=-1)[0] - logits[0, -1]).abs().max() > 1e-6

def test_masks(model):
    "unequal_prompts: masks that mean nothing, padding after a prompt, and a warning where nobody masked."
    x = ids(2, 6)
    for mask in (torch.ones(2, 5), torch.zeros(2, 6), torch.full((2, 6), 2), torch.tensor([[1, 0, 1, 1, 1, 1], [1]*6]), 'left', torch.full((2, 6), math.nan)):
        with says('mask'): model(x, attention_mask=mask)
    right = torch.tensor([[1, 1, 1, 0, 0, 0], [1]*6])
    assert (model(x, attention_mask=right)[0, :3] - model(x[:1, :3])[0]).abs().max() < 1e-12
    with says('on the left'): model.generate(x, 2, attention_mask=right)
    tokens, mask = left_pad([[5, 6], [1, 2, 3, 4, 5, 6]])
    with pytest.warns(UserWarning, match='left_pad'): model(tokens)
    with warnings.catch_warnings(action='error'):
        model(tokens, attention_mask=mask)
        model(torch.cat([torch.zeros(3, 1, dtype=torch.long), ids(3, 4)], 1))   # a mark of the beginning is no padding
    for wrong in ([], [[]], [[1], []]):
        with says('prompt'): left_pad(wrong)

SMALL = dict(vocab_size=61, hidden_size=16, num_hidden_layers=2, pad_token_id=0)

def adapted(name, **config):
    torch.manual_seed(1)
    inner = getattr(transformers, f'{name}ForCausalLM')(getattr(transformers, f'{name}Config')(**SMALL | config)).eval()
    for p in inner.parameters(): p.data.add_(.1*torch.randn_like(p))
    return Adapter(inner)

@pytest.mark.parametrize('name,config,exact', [('Mamba', dict(state_size=4), True), ('Mamba', dict(state_size=4, use_bias=True), False), ('Mamba2', dict(num_heads=4, head_dim=8, n_groups=2, state_size=4), True), ('FalconMamba', dict(state_size=4), True),
    ('GPTNeoX', dict(num_attention_heads=2, intermediate_size=24), True)], ids=str)
def test_padded_prompts_in_an_adapter(name, config, exact):
    "unequal_prompts: an adapter hands the mask on where that leaves a prompt as if it were alone, and refuses it elsewhere."
    adapter = adapted(name, **config)
    tokens, mask = left_pad([ids(4), ids(7)])
    with torch.no_grad():
        if not exact:
            with says(f'{name}ForCausalLM', 'one length'): adapter(tokens, attention_mask=mask)
            with says(f'{name}ForCausalLM', 'one length'): adapter.generate(tokens, attention_mask=mask)
            return
        alone = adapter(ids(1, 4), at=-1)[0]
        assert ((adapter(tokens, at=-1, attention_mask=mask)[0] - alone).norm()/alone.norm()) < 1e-5
        assert torch.equal(adapter.generate(tokens, 3, attention_mask=mask)[0, -3:], adapter.generate(ids(1, 4), 3)[0, -3:])

# generation with taps

def by_definition(model, x, n, edits):
    "Generate by one whole run for each new token; `edits` are (site, tokens, function), tokens of the final text."
    edits = [(Site.parse(s), tokens, f) for s, tokens, f in edits]
    for _ in range(n):
        taps = {}
        for site, tokens, f in edits:
            here = [t for t in tokens if t < x.shape[1]]
            if site.name == 'state': taps |= {site._replace(pos=t): f for t in here}
            else:
                def put(v, here=here, f=f):
                    v = v.clone()
                    v[:, here] = f(v[:, here])
                    return v
                taps[site] = put
        x = torch.cat([x, model(x, taps)[:, -1].argmax(-1, keepdim=True)], 1)
    return x

@pytest.mark.parametrize('kind', [1, 2])
def test_generate_with_taps(kind):
    "generate_prompt_tap: the text equals that of whole runs with the same taps, tokens counted in the whole text."
    model = Mamba.tiny(kind=kind, seed=3).double().requires_grad_(False)
    for p in model.parameters(): p += .2*torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=p.dtype)
    x, d = ids(2, 8), torch.ones(24, dtype=torch.float64)
    add, everywhere = (lambda v: v + 3*d), range(99)
    for taps, edits in ((steer('1.resid', d, 3., at=3), [('1.resid', [3], add)]), (steer('1.resid', d, 3., at=-1), [('1.resid', [7], add)]), (steer('1.resid', d, 3.), [('1.resid', everywhere, add)]),
        (steer('1.resid', d, 3., at=[0, 9, 11]), [('1.resid', [0, 9, 11], add)]), ({'1.state@5': torch.zeros_like}, [('1.state', [5], torch.zeros_like)]), ({'1.state@10': torch.neg}, [('1.state', [10], torch.neg)]),
        ({'1.state': torch.neg}, [('1.state', everywhere, torch.neg)]), ({'1.state@-2': torch.neg}, [('1.state', [6], torch.neg)]), ({'0.conv': torch.neg}, [('0.conv', everywhere, torch.neg)]),
        ({'embed': Tap('negate', torch.neg, at=[2, 8])}, [('embed', [2, 8], torch.neg)]), ({'final_resid': Tap('add', add, at=[7, 9])}, [('final_resid', [7, 9], add)]),
        (replace({'1.resid': torch.zeros(2, 8, 24)}, at=3), [('1.resid', [3], torch.zeros_like)]), (replace({'1.resid': torch.zeros(2, 8, 24)}), [('1.resid', range(8), torch.zeros_like)]),
        (replace({'1.resid': torch.zeros(2, 13, 24)}), [('1.resid', everywhere, torch.zeros_like)]), (ablate(model, '0.u', at=[1, 9]), [('0.u', [1, 9], torch.zeros_like)]),
        (chain(steer('1.resid', d, 3., at=3), steer('1.resid', d, 3., at=9), {'0.z': torch.neg}), [('1.resid', [3, 9], add), ('0.z', everywhere, torch.neg)])):
        assert torch.equal(model.generate(x, 6, taps=taps), by_definition(model, x, 6, edits)), edits[0][:2]
    each = steer('1.resid', d, 3., at=torch.tensor([3, -1]))
    for row, at in ((0, 3), (1, 7)): assert torch.equal(model.generate(x, 6, taps=each)[row], by_definition(model, x, 6, [('1.resid', [at], add)])[row])
    with says('at is 13', '0 to 12'): model.generate(x, 6, taps=steer('1.resid', d, at=13))
    with says('at is -9'): model.generate(x, 6, taps=steer('1.resid', d, at=-9))

def test_adapter_generates_with_taps():
    "generate_prompt_tap: an adapter generates by the same rule as the model that it holds."
    adapter = adapted('Mamba', state_size=4)
    mine = Mamba(adapter.config).requires_grad_(False)
    mine.load_state_dict(from_checkpoint(adapter.inner.state_dict()))
    for taps in (None, steer('1.resid', torch.ones(16), 3., at=-1), steer('1.resid', torch.ones(16), 3., at=[2, 8]), {'0.block_out': torch.neg}):
        assert torch.equal(adapter.generate(ids(2, 7), 4, taps=taps), mine.generate(ids(2, 7), 4, taps=taps))
    with says('the run has tokens'): adapter(ids(2, 7), at=7)
    with says('-1'): adapter.generate(ids(2, 7), -1)

# taps

def test_recorded_after_its_tap(model):
    "Spec: an edited state is recorded as edited, whatever names the tap and the recording have."
    x = ids(2, 7)
    plain = record(model, x, '1.state')[Site('state', 1)]
    for taps in ({'1.state@4': torch.neg}, {'1.state@-3': torch.neg}, {Site('state', 1): torch.zeros_like, Site('state', 1, 4): lambda v: v + 1}, {Site('state', 1, 4): lambda v: v + 1, Site('state', 1): torch.zeros_like}):
        whole, one = record(model, x, '1.state', taps)[Site('state', 1)], record(model, x, '1.state@4', taps)[Site('state', 1, 4)]
        want = -plain[:, 4] if len(taps) == 1 else torch.full_like(one, 1. if next(iter(taps)).pos is None else 0.)
        assert torch.equal(whole[:, 4], one) and (one - want).abs().max() < 1e-12
    order = chain({'1.state': torch.zeros_like}, {'1.state@4': lambda v: v + 1}, {'1.state': lambda v: 2*v})
    assert (record(model, x, '1.state', order)[Site('state', 1)][:, 4] - 2).abs().max() < 1e-12

def test_record_leaves_out_what_is_formed_on_request(model, model2):
    "record_all_default: by default, nothing that a model forms only when asked; by name, all of it; and never more than fits."
    for m in (model, model2):
        assert {s.name for s in m.sites()} - {s.name for s in record(m, ids(2, 5))} == {'attention', 'conv_lag', 'state'} == {s.name for s in m.sites()} - {s.name for s in record(m, ids(2, 5), '*')}
        assert set(record(m, ids(2, 5), m.sites())) == set(m.sites()) and Site('attention', 1) in record(m, ids(2, 5), '*.attention')
        for site, value in record(m, ids(2, 5), m.sites()).items(): assert m.bytes_at(site, (2, 5)) == value.numel()*8
    with says('bytes', 'recording'): record(model, ids(1, 8).expand(3000, 8).repeat(1, 500), '*.attention')

def test_mean_over_prompts_that_have_the_token(model):
    "mean_over_padding: what fills up a shorter prompt makes no difference to its mean."
    end, length = torch.tensor([3, 6, 6]), 9
    x, gone = ids(3, length), torch.arange(length) > end[:, None]
    taps = [ablate(model, ['1.resid', '0.u', '2.state'], 'mean', x.masked_fill(gone, fill), end=e) for fill, e in ((0, end), (17, end), (17, [3, -3, 6]))]
    outs = [model(x, o)[:, :7] for o in taps]
    assert (outs[0] - outs[1]).abs().max() < 1e-12 and (outs[0] - outs[2]).abs().max() < 1e-12
    value = torch.randn(3, length, 4, 2)
    mean = mean_over_prompts(value, end)[0]
    for t in range(length):
        have = [row for row in range(3) if t <= end[row]] or range(3)
        assert (mean[t] - sum(value[row, t] for row in have)/len(have)).abs().max() < 1e-6
    for wrong in (torch.tensor([3, 6]), torch.tensor([3, 6, 9]), 4):
        with says('end'): mean_over_prompts(value, wrong)

@pytest.mark.parametrize('call', [lambda m: steer('1.resid', torch.ones(7)), lambda m: steer('1.resid', torch.full((24,), math.nan)), lambda m: steer('1.resid', torch.ones(24), math.inf), lambda m: steer('1.rsid', torch.ones(24)),
    lambda m: replace({'1.resid': torch.ones(2, 6, 24)}), lambda m: replace({'1.resid': 3}), lambda m: ablate(m, '1.x', 'noise'), lambda m: ablate(m, '1.x', 'mean'), lambda m: ablate(m, '1.x', 'resample', 'text'), lambda m: ablate(m, 3)])
def test_interventions(model, call):
    "Interventions that cannot be meant."
    with says(): model(ids(2, 7), call(model))

def test_sites_as_text(model):
    "A site as text is accepted wherever a Site is."
    x, value = ids(2, 7), torch.zeros(2, 7, 24, dtype=torch.float64)
    for taps in ({'1.resid': torch.zeros_like}, replace({'1.resid': value}), chain({'1.resid': torch.zeros_like}, {Site('resid', 1): torch.neg})): assert torch.equal(model(x, taps), model(x, {Site('resid', 1): torch.zeros_like}))
    for wrong in ('', '@', '1.', '.conv', '1.conv@', '1.state@', '1.state@x', '².conv', '9'*5000 + '.conv', None, 3, ('conv', 1)):
        with says(): Site.parse(wrong)
    with says('closest'): match_sites(None, model.sites())

# adapters

def test_adapter_by_name(tmp_path):
    "adapter_by_name: a folder opens as the model in it, with its tokenizer, with one's own, and without."
    for i, name in enumerate(('FalconMamba', 'GPTNeoX')):
        inner = adapted(name, **(dict(state_size=4) if name == 'FalconMamba' else dict(num_attention_heads=2, intermediate_size=24))).inner
        folder = tmp_path/str(i)
        inner.save_pretrained(folder)
        with torch.no_grad():
            want = inner(ids(2, 7), use_cache=False).logits
            assert Adapter(str(folder)).tokenizer is None and (Adapter(folder)(ids(2, 7)) - want).abs().max() < 1e-6
            own = word_tokenizer()
            assert Adapter(folder, own).tokenizer is own and (Adapter(folder, own)(ids(2, 7)) - want).abs().max() < 1e-6
            own.save_pretrained(folder)
            assert Adapter(folder).tokenizer.encode('w3 w4') == [3, 4]
    (folder/'tokenizer.json').write_text('null')
    with says('tokenizer', str(folder)): Adapter(folder)
    (folder/'config.json').write_text('[1]')
    with says(str(folder)): Adapter(folder)

def test_what_is_no_adapter(model):
    "adapter_circuits: what an adapter cannot hold."
    for wrong in (None, 3, torch.nn.Linear(2, 2), model):
        with says(): Adapter(wrong)

# fingerprints

def test_fingerprints(model):
    "A fingerprint is kept, notices every change of a weight, and tells Mamba-2's limits apart."
    first = fingerprint(model)
    with torch.no_grad(): model.layers[2].in_proj.weight[3, 4] += 1
    second = fingerprint(model)
    model.layers[2].in_proj.weight.data[3, 4] -= 1
    assert fingerprint(model) not in (second,) and first != second
    model.load_state_dict(Mamba.tiny(seed=3).state_dict())
    assert fingerprint(model) == first == fingerprint(Mamba.tiny(seed=3)) == fingerprint(copy.deepcopy(model))
    with torch.inference_mode(): assert fingerprint(copy.deepcopy(model)) == first
    two = [Mamba.tiny(kind=2, time_step_limit=o) for o in ((0., math.inf), (.01, .2))]
    assert fingerprint(two[0]) == fingerprint(Mamba.tiny(kind=2)) != fingerprint(two[1])
    assert fingerprint(Mamba.load('house')) == '239fd510ab201d11'

def test_memory_is_told():
    "record_all_default: more memory than there is is told in bytes, before it is taken."
    with says('1,000,000,000,000,000,000 bytes', 'a table'): enough_memory(10**18, 'a table')
    enough_memory(10, 'a table')

# ---- positions, blocks, directions: what a newcomer hands over ---------------------------------------------------

@pytest.mark.parametrize('at', [np.int64(-1), [np.int64(-1)], np.array([-1, -4]), torch.tensor([-1, -4]), torch.tensor(-2)], ids=str)
def test_negative_positions_of_arrays_count_from_the_end_of_the_prompt(model, at):
    "generate_prompt_tap: numbers of numpy mean what Python's do; an array (b) is one token per prompt, as a tensor is."
    x, d = ids(2, 8), torch.linspace(-5, 5, 24).double()
    places = (torch.as_tensor(np.asarray(at)) % 8).reshape(-1)
    here = torch.zeros(2, 8, 1).double()
    here[torch.arange(2), places.expand(2)] = 1
    resid, past = model.run(model.embed_tokens(x), {'1.resid': lambda old: old + here*d})
    new = [model.unembed(resid)[:, -1].argmax(-1, keepdim=True)]
    for _ in range(3):
        resid, past = model.run(model.embed_tokens(new[-1]), past=past)
        new.append(model.unembed(resid)[:, -1].argmax(-1, keepdim=True))
    assert torch.equal(model.generate(x, 4, taps=steer('1.resid', d, at=at))[:, 8:], torch.cat(new, 1))

@pytest.mark.parametrize('kind', (1, 2))
def test_the_mean_at_one_token_leaves_out_shorter_prompts(kind):
    "mean_over_padding: `state@5` is a mean over the prompts that have token 5, in ablate and in patching."
    from mamba_interp.circuits import source_values
    from mamba_interp.tasks import Task
    model, x = Mamba.tiny(seed=3, kind=kind).double().requires_grad_(False), ids(3, 8)
    end, site = torch.tensor([3, 7, 5]), Site('state', 1, 5)
    right = record(model, x, '1.state')[Site('state', 1)][1:, 5].mean(0)
    tap = ablate(model, '1.state@5', 'mean', x, end=end)[site]
    assert torch.allclose(tap(torch.zeros(3, *right.shape).double()), right.expand(3, *right.shape))
    task = Task(x, x, x[:, 0], x[:, 1], dict(end=end))
    assert torch.allclose(source_values(model, task, '1.state@5', 'mean')[site], right.expand(3, *right.shape))

@pytest.mark.parametrize('prompts', [5, 'ab', ['ab', 'c'], None, [[1.5], [2]], [[True]], [[1], [None]], [[-1]], [[[1, 2]]], [[2**70]], [{}], []], ids=str)
def test_left_pad_takes_token_ids(prompts):
    "unequal_prompts: what is no token id is refused, not rounded."
    with says('expected'): left_pad(prompts)

def test_runs_of_some_blocks(model, model2):
    "Blocks and memories that the model does not have are refused by name."
    x = model.embed_tokens(ids(2, 5))
    for layers in (3, 'x', [5], [-1], ['a'], [1.5]):
        with says('block'): model.run(x, layers=layers)
    for past in (3, [], [None], ['a']*3, model.run(x[:1])[1], model2.run(model2.embed_tokens(ids(2, 5)))[1]):
        with says('past', 'Memory'): model.run(x, past=past)
    with says('at least one prompt'): model.run(x[:0])
    for layer in (3, -1, 'a', None):
        with says('layer', 'from 0 to 2'): split_block_out(model, layer, x)

def test_interventions_of_another_kind(model):
    "Directions, values and taps that are none, and blocks that are no whole number."
    x = ids(2, 8)
    for direction in ('x', None, torch.zeros(24, dtype=torch.complex64), []):
        with says('direction', 'expected a vector'): steer('1.resid', direction)
    for value in (3, None, torch.zeros(2, 8, 3), torch.zeros(2)):
        with says('state', 'expected a tensor'): replace({'1.state': value})
    for wrong in (3, [('1.resid', x)]):
        with says('dict of Site'): replace(wrong)
        with says('dict of Site'): chain(wrong)
        with says('dict of Site'): model(x, wrong)
    with says('dict of Site'): model(x, [])
    for layer in (1., True):
        with says('no site'): model(x, {Site('resid', layer): lambda old: old})
    with says('[1, 2]', 'tokens 0 to 7'): model(x, steer('1.resid', torch.ones(24), at=torch.tensor([[1, 2]])))

def test_one_tensor_under_two_names(tmp_path):
    "checkpoint_variants: two names for one tensor are refused unless both hold the same; an index says which shard counts."
    folder = saved(tmp_path/'a')
    weights = load_file(folder/'model.safetensors')
    key = next(k for k in weights if k.endswith('A_log'))
    save_file(weights | {key.removeprefix('backbone.'): weights[key] + 1}, folder/'model.safetensors')
    with says('twice', 'A_log'): Mamba.load(folder)
    save_file(weights | {key.removeprefix('backbone.'): weights[key].clone()}, folder/'model.safetensors')
    plain = Mamba.load(folder)
    (folder/'model.safetensors').unlink()
    half, rest = dict(list(weights.items())[:9]), dict(list(weights.items())[9:])
    save_file(half, folder/'a.safetensors'), save_file(rest | {k: v + 1 for k,v in half.items()}, folder/'b.safetensors')
    where = dict.fromkeys(half, 'a.safetensors') | dict.fromkeys(rest, 'b.safetensors')
    (folder/'model.safetensors.index.json').write_text(json.dumps(dict(weight_map=where)))
    assert torch.equal(Mamba.load(folder)(ids(2, 5)), plain(ids(2, 5)))

def test_settings_of_many_devices_change_nothing(tmp_path):
    "ssm_cfg_ignored: mamba_ssm's settings for several devices, written out, are no reason to refuse."
    raw = dict(d_model=24, n_layer=3, vocab_size=61, ssm_cfg=dict(layer='Mamba2', d_state=5, headdim=8, sequence_parallel=True, process_group=None))
    (tmp_path/'config.json').write_text(json.dumps(raw))
    assert config_of(tmp_path).num_heads == 6
    with says('device', "'cpu'"): Mamba.load('house', device=None)
    with says('seed'): Mamba.tiny(seed=2**70)

def test_taps_are_checked_where_nothing_is_added(model):
    "generate_prompt_tap: with n=0 no run is made, and a tap at no site is still refused."
    assert torch.equal(model.generate(ids(2, 5), 0, taps=steer('1.resid', torch.ones(24), at=-1)), ids(2, 5))
    with says('9.resid'): model.generate(ids(2, 5), 0, taps={'9.resid': lambda old: old})
