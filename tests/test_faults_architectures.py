"Other architectures: what is published opens as what it is, and what cannot be read is refused in one sentence."
import json

import pytest, torch, transformers
from safetensors.torch import load_file, save_file
from mamba_interp.model import Adapter, Mamba, Tap, config_of, cut, load_family, record, replace

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
ZAMBA = dict(num_attention_heads=2, num_key_value_heads=2, attention_hidden_size=32, attention_head_dim=16, intermediate_size=24, mamba_d_state=4, mamba_dt_rank=2, n_mamba_heads=2, use_mamba_kernels=False, attn_layer_period=2, attn_layer_offset=1)
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
