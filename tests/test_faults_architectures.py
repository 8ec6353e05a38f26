"Other architectures: what is published opens as what it is, and what cannot be read is refused in one sentence."
import json

import pytest, torch, transformers
from safetensors.torch import load_file, save_file
from mamba_interp.model import Mamba, config_of, record, replace

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
