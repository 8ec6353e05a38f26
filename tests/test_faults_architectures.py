"Other architectures: what is published opens as what it is, and what cannot be read is refused in one sentence."
import json

import pytest, torch, transformers
from mamba_interp.model import (Adapter, DenseRetNet, DenseRetNetConfig, Hyena, HyenaConfig, Mamba, MoEMamba, MoEMambaConfig, Tap,
                                config_of, cut, load_family, record, replace)

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
REFUSED = (ValueError, TypeError, OSError)

def ids(*shape, seed=1): return torch.randint(1, 61, shape, generator=torch.Generator().manual_seed(seed))

def refused(call, *words):
    "The call raises one error of one line that holds all the words."
    with pytest.raises(REFUSED) as found: call()
    text = str(found.value)
    assert '\n' not in text and len(text) < 500, text
    assert all(o in text for o in words), f'{words} are not all in: {text}'

# FalconMamba and MiniPLM

MINIPLM = dict(architectures=['MambaForCausalLM'], bos_token_id=0, conv_kernel=4, d_inner=1536, d_model=768, eos_token_id=0, expand=2, fused_add_norm=True, hidden_act='silu', hidden_size=768,
    initializer_range=.1, intermediate_size=1536, layer_norm_epsilon=1e-5, model_type='mamba', n_layer=24, num_hidden_layers=24, pad_token_id=0, pad_vocab_size_multiple=8, rescale_prenorm_residual=False,
    residual_in_fp32=True, rms_norm=True, ssm_cfg={}, state_size=16, time_step_floor=1e-4, time_step_init_scheme='random', time_step_max=.1, time_step_min=.001, time_step_rank=48, time_step_scale=1.,
    torch_dtype='float32', transformers_version='4.39.0', use_bias=False, use_cache=True, use_conv_bias=True, vocab_size=50280)

def test_miniplm_is_a_mamba(tmp_path):
    "A distilled Mamba of 130 M is a Mamba: its configuration says so, and a small copy of its layout opens."
    (tmp_path/'config.json').write_text(json.dumps(MINIPLM))
    found = config_of(tmp_path)
    assert (found.model_type, found.num_hidden_layers, found.hidden_size, found.vocab_size) == ('mamba', 24, 768, 50280)
    small = MINIPLM | dict(hidden_size=24, d_model=24, intermediate_size=48, d_inner=48, num_hidden_layers=2, n_layer=2, vocab_size=61, time_step_rank=2)
    theirs = transformers.MambaForCausalLM(transformers.MambaConfig.from_dict(small)).eval()
    theirs.save_pretrained(tmp_path)
    (tmp_path/'config.json').write_text(json.dumps(small))
    tokens = ids(2, 9)
    with torch.no_grad(): want = theirs(tokens, use_cache=False).logits
    assert (Mamba.load(tmp_path)(tokens) - want).abs().max() < 1e-4*want.abs().max()

@pytest.fixture
def falcon(): return Mamba.tiny(seed=2, kind='falcon_mamba').double().requires_grad_(False)

def test_falcon_replaced_by_itself(falcon):
    "Replacing every site of a FalconMamba by its own recording changes nothing; it is not the Mamba of its weights."
    tokens = ids(2, 9)
    clean = falcon(tokens)
    for site in falcon.sites():
        if site.name not in ('state', 'attention'):
            assert (falcon(tokens, replace(record(falcon, tokens, site))) - clean).abs().max() < 1e-10, site
    plain = Mamba.tiny(seed=2).double()
    plain.load_state_dict(falcon.state_dict())
    assert (plain(tokens) - clean).abs().max() > 1e-3
    assert plain.fingerprint != falcon.fingerprint

@pytest.mark.parametrize('change,words', [(dict(mixer_rms_eps=0), ['mixer_rms_eps', 'above 0']), (dict(mixer_rms_eps='1e-6'), ['mixer_rms_eps']),
    (dict(intermediate_size=50), ['intermediate_size is 50']), (dict(model_type='falcon-mamba'), ['falcon_mamba']), (dict(state_size=0), ['state_size'])], ids=str)
def test_falcon_fields(tmp_path, falcon, change, words):
    falcon.save(tmp_path)
    file = tmp_path/'config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refused(lambda: Mamba.load(tmp_path), *words)

# hybrids through the adapter

SMALL = dict(vocab_size=61, hidden_size=16, num_hidden_layers=4, pad_token_id=0)
HEADS = dict(num_attention_heads=2, num_key_value_heads=1, intermediate_size=24)
JAMBA = HEADS | dict(num_experts=3, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, mamba_d_state=4, mamba_dt_rank=2, use_mamba_kernels=False)
ZAMBA = dict(num_attention_heads=2, num_key_value_heads=2, attention_hidden_size=32, attention_head_dim=16, intermediate_size=24, mamba_d_state=4, mamba_dt_rank=2, n_mamba_heads=2, use_mamba_kernels=False, attn_layer_period=2, attn_layer_offset=0)
HYBRIDS = dict(Jamba=JAMBA, Zamba=ZAMBA, Mistral=HEADS, GraniteMoeHybrid=HEADS | dict(num_local_experts=3, num_experts_per_tok=2, residual_multiplier=.5, shared_intermediate_size=24, layers_block_type=['mamba', 'attention']*2,
    mamba_n_heads=4, mamba_d_head=8, mamba_d_state=4, mamba_n_groups=1, mamba_expand=2), Rwkv=dict(attention_hidden_size=16, rescale_every=0), GPT2=dict(num_attention_heads=2))

def hybrid(name):
    torch.manual_seed(0)
    config = getattr(transformers, f'{name}Config')(**SMALL | HYBRIDS[name])
    inner = getattr(transformers, 'GPT2LMHeadModel' if name == 'GPT2' else f'{name}ForCausalLM')(config).eval()
    for o in inner.parameters(): o.data.mul_(2)
    return Adapter(inner.requires_grad_(False))

@pytest.mark.parametrize('name', HYBRIDS)
def test_hybrid(name):
    "Identity taps, the parts of a block, causality, and the cut test at every block."
    adapter = hybrid(name)
    tokens, other = ids(2, 9), ids(2, 9, seed=2)
    clean, want = adapter(tokens), adapter(other)
    bar = 2e-5*clean.abs().max()
    seen = record(adapter, tokens)
    assert (adapter(tokens, replace(seen)) - clean).abs().max() < bar
    for l in range(4):
        after = seen['final_resid' if l == 3 else f'{l + 1}.resid']
        assert (seen[f'{l}.resid'] + seen[f'{l}.block_out'] - after).abs().max() < 1e-5
        if f'{l}.mlp_out' in seen: assert (seen[f'{l}.resid'] + seen[f'{l}.mixer_out'] + seen[f'{l}.mlp_out'] - after).abs().max() < 1e-5
        sites = cut(adapter, l)
        assert (adapter(tokens, replace(record(adapter, other, sites))) - want).abs().max() < bar, (name, l)
        late = adapter(tokens, {f'{l}.block_out': Tap('negate', torch.neg, [6])})
        assert (late[:, :6] - clean[:, :6]).abs().max() < bar and (late - clean).abs().max() > bar
    halves = {o.name for o in adapter.sites()} & {'mixer_out', 'mlp_out', 'router'}
    assert halves == dict(Jamba={'mixer_out', 'mlp_out', 'router'}, GraniteMoeHybrid={'mixer_out', 'mlp_out', 'router'}, Zamba={'mixer_out'}).get(name, {'mixer_out', 'mlp_out'})
    for site in adapter.sites('*.router') if 'router' in halves else []:
        assert (adapter(tokens, {site: torch.neg}) - clean).abs().max() > bar, 'a changed router changes the choice'

def test_second_path_of_zamba():
    "The residual stream alone is no cut: the shared attention reads the embedding."
    adapter, tokens, other = hybrid('Zamba'), ids(2, 9), ids(2, 9, seed=2)
    alone = adapter(tokens, replace(record(adapter, other, '1.resid')))
    assert (alone - adapter(other)).norm() > 1e-3*(adapter(tokens) - adapter(other)).norm()
    assert [str(o) for o in cut(adapter, 1)] == ['embed', '1.resid']

def test_first_blocks(tmp_path):
    "until: the first blocks of a folder, their residual stream, and numbers of blocks that are none."
    whole = hybrid('Jamba')
    whole.inner.save_pretrained(tmp_path)
    short, tokens = Adapter(tmp_path, until=2), ids(2, 7)
    assert len(short.inner.model.layers) == 2
    assert (short(tokens) - record(whole, tokens, '2.resid')['2.resid']).abs().max() < 1e-4
    for until in (0, 5, 1.5, '2'): refused(lambda: Adapter(tmp_path, until=until), 'until')
    refused(lambda: short.generate(tokens), 'no logits')
    refused(lambda: Adapter(whole.inner, until=9), 'until')
    refused(lambda: cut(whole, 4), 'layer is 4')

def test_rwkv_that_rescales():
    inner = transformers.RwkvForCausalLM(transformers.RwkvConfig(**SMALL, attention_hidden_size=16, rescale_every=2))
    refused(lambda: Adapter(inner), 'rescale_every = 0')

def test_remote_code(tmp_path):
    "A folder that asks to run its own code is refused, and no line of it runs."
    (tmp_path/'config.json').write_text(json.dumps(dict(model_type='own', auto_map=dict(AutoConfig='code.Own', AutoModelForCausalLM='code.Model'))))
    (tmp_path/'code.py').write_text(f'open({str(tmp_path/"ran")!r}, "w")\nclass Own: pass\nclass Model: pass')
    for call in (lambda: Adapter(tmp_path), lambda: load_family(tmp_path), lambda: Mamba.load(tmp_path)): refused(call)
    assert not (tmp_path/'ran').exists()

# layouts as published

def written(folder, config, weights, name='pytorch_model.bin'):
    (folder/'config.json').write_text(json.dumps(config))
    torch.save(weights, folder/name)
    return folder

def blackmamba(folder, **changes):
    "A BlackMamba as Zyphra publishes it, and the model that it is."
    layers = ['r', '4', 'r', '1']
    model = MoEMamba(MoEMambaConfig(64, 12, tuple(layers), 20, state_size=5, bias=True)).double().requires_grad_(False)
    def name(k):
        if k.startswith('embeddings.'): return k.replace('embeddings.', 'embedding.word_embeddings.')
        k = k.replace('final_norm.', 'decoder.final_layernorm.')
        if not k.startswith('layers.'): return k
        head, layer, rest = k.split('.', 2)
        if layers[int(layer)] == '1': rest = rest.replace('experts.0.', 'mixer.')
        rest = rest.replace('experts.', 'mixer.local_experts.').replace('routes.', 'mixer.router.')
        return f"decoder.layers.{layer}.{rest if rest.startswith(('norm.', 'mixer.')) else 'mixer.' + rest}"
    weights = {name(k): v for k, v in model.state_dict().items() if k != 'lm_head.weight'}
    config = dict(num_layers=4, hidden_size=12, state_size=5, conv_dimension=4, vocab_size=64, expansion_factor=2, ffn_hidden_size=20, add_bias_linear=True, swiglu=True, mamba_moe_layers=layers, max_sequence_length=2048)
    return written(folder, config | changes, dict(model=weights)), model

def dense(folder, **changes):
    "A DenseRetNet as published: a llama by name, with keys of its own and a request to run code."
    model = DenseRetNet(DenseRetNetConfig(61, 64, 32, 3, 2)).double().requires_grad_(False)
    def name(k):
        if k == 'lm_head.weight': return k
        k = k.replace('embeddings.', 'embed_tokens.').replace('final_norm.', 'norm.').replace('to_hidden.', 'to_hidden.0.').replace('to_out.', 'to_out.0.')
        for o in ('q_proj', 'k_proj', 'to_hidden', 'to_out', 'k_select', 'v_select', 'k_norm', 'v_norm', 'group_norm'): k = k.replace(f'.{o}.', f'.self_attn.{o}.')
        return 'model.' + k
    weights = {name(k): v for k, v in model.state_dict().items()} | {'model.retnet_rel_pos.angle': torch.zeros(16), 'model.retnet_rel_pos.decay': torch.zeros(2)}
    config = dict(model_type='llama', auto_map=dict(AutoModelForCausalLM='modeling.LlamaForCausalLM'), hidden_size=64, query_key_dim=32, num_attention_heads=2, num_hidden_layers=3, rms_norm_eps=1e-6,
        tie_word_embeddings=False, vocab_size=61, v_factor=2, dense_block_layers=1, deepnorm=False, dropout=.1)
    return written(folder, config | changes, weights), model

YAML = 'model:\n  d_model: 12\n  n_layer: 2\n  d_inner: 20\n  vocab_size: 61\n  pad_vocab_size_multiple: 8\n  layer:\n    l_max: 40\n    order: 2\n    filter_order: 8\n    emb_dim: 5\n    w: 14\n    modulate: false\n    num_inner_mlps: 2\n    short_filter_order: 3\n'

def hyena(folder, yaml=YAML):
    "A Hyena of safari: weights under a trainer's name, its configuration beside them as YAML."
    model = Hyena(HyenaConfig(61, 12, 2, 20, longest=40, filter_order=8, position_size=5)).double().requires_grad_(False)
    def name(k):
        if k == 'lm_head.weight': return k
        k = k.replace('embeddings.', 'embeddings.word_embeddings.').replace('final_norm.', 'ln_f.')
        for o in ('in_proj', 'out_proj', 'short_filter', 'filter_fn'): k = k.replace(f'.{o}.', f'.mixer.{o}.')
        return 'backbone.' + k.replace('.fc1.', '.mlp.fc1.').replace('.fc2.', '.mlp.fc2.')
    if yaml is not None: (folder/'hyena.yaml').write_text(yaml)
    torch.save(dict(state_dict={f'model.{name(k)}': v for k, v in model.state_dict().items()}), folder/'hyena.ckpt')
    return folder, model

@pytest.mark.parametrize('make', [blackmamba, dense, hyena])
def test_published_layouts(tmp_path, make):
    "Written as published, it opens as what it is, with the same logits, and the round trip keeps them."
    torch.manual_seed(0)
    folder, model = make(tmp_path)
    tokens = ids(2, 9)
    found = load_family(folder, dtype=torch.float64)
    assert type(found) is type(model) and (found(tokens) - model(tokens)).abs().max() < 1e-10
    found.save(tmp_path/'again')
    assert (load_family(tmp_path/'again', dtype=torch.float64)(tokens) - model(tokens)).abs().max() < 1e-10
    clean = found(tokens)
    assert torch.equal(found(tokens), clean) and found.generate(tokens, 2).shape == (2, 11)

@pytest.mark.parametrize('make,changes,words', [(blackmamba, dict(mamba_moe_layers=['r', '4', 'r', 'r4']), ['mamba_moe_layers', 'r4']), (blackmamba, dict(mamba_moe_layers=['r']), ['1 entries', '4']), (blackmamba, dict(swiglu='yes'), ['swiglu']),
    (blackmamba, dict(hidden_size=16), ['do not fit']), (blackmamba, dict(mamba_moe_layers=['r', '3', 'r', '1']), ['unexpected']), (dense, dict(deepnorm=True), ['deepnorm']), (dense, dict(query_key_dim='32'), ['query_key_dim']),
    (dense, dict(num_attention_heads=0), ['num_attention_heads']), (dense, dict(hidden_size=96), ['do not fit'])], ids=lambda o: str(o)[:40])
def test_wrong_settings(tmp_path, make, changes, words):
    refused(lambda: load_family(make(tmp_path, **changes)[0]), *words)

def test_llama_with_retnet_keys(tmp_path):
    "A `llama` that is a DenseRetNet opens as one here, and the adapter says where it opens instead of taking it for a Llama."
    folder, _ = dense(tmp_path)
    refused(lambda: Adapter(folder), 'load_family')
    refused(lambda: Mamba.load(folder), "'llama'")

@pytest.mark.parametrize('yaml,words', [(None, ['.yaml']), ('a: [', ['YAML']), ('[1]', ['expected']), (YAML.replace('order: 2\n    f', 'order: 3\n    f'), ['order']), (YAML.replace('d_model: 12', 'd_model: 14'), ['do not fit']), (YAML.replace('d_inner: 20', 'd_inner: -1'), ['ffn_size'])], ids=['none', 'broken', 'list', 'order', 'width', 'negative'])
def test_hyena_settings(tmp_path, yaml, words): refused(lambda: load_family(hyena(tmp_path, yaml)[0]), *words)

def test_pickled_objects(tmp_path):
    "A checkpoint that would run code when it is read is refused unread."
    folder, _ = blackmamba(tmp_path)
    class Runs:
        def __reduce__(self): return (open, (str(tmp_path/'ran'), 'w'))
    torch.save(dict(model=dict(x=Runs())), folder/'pytorch_model.bin')
    refused(lambda: load_family(folder), 'pytorch_model.bin')
    assert not (tmp_path/'ran').exists()
    for name in ('/no/such', '', 3, None): refused(lambda: load_family(name))
