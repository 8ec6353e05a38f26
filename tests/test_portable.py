"""The same results on every processor: with AVX-512, AVX2 and neither, on 1, 2 and 4 threads, with and without a compiler.

`make test-portable` runs this file alone. What a processor without AVX-512 does is had here by telling torch, oneDNN, MKL
and the compiled scan not to use it."""
import importlib, json, os, platform, shutil, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from docs import pages
scans = importlib.import_module('mamba_interp.model.compiled_scan')
middle = importlib.import_module('mamba_interp.model.middle')
from mamba_interp.model import Mamba, conv_silu, gated_scan, scan, scan_backends, scan_by_step, scan_secant

PROCESSORS = dict(
    avx2=dict(ATEN_CPU_CAPABILITY='avx2', ONEDNN_MAX_CPU_ISA='AVX2', MKL_ENABLE_INSTRUCTIONS='AVX2', MAMBA_INTERP_SCAN='avx2'),
    default=dict(ATEN_CPU_CAPABILITY='default', ONEDNN_MAX_CPU_ISA='SSE41', MKL_ENABLE_INSTRUCTIONS='SSE4_2', MAMBA_INTERP_SCAN='plain'))
X86 = platform.machine() in ('x86_64', 'AMD64')
VECTORS = torch.backends.cpu.get_cpu_capability() in ('AVX2', 'AVX512')
if not VECTORS: PROCESSORS.pop('avx2')  # told to use what is not there, torch would end
BUILDS = ['auto', 'avx512', 'avx2', 'plain']
PAGES = [pages.named(o) for o in ('model/mamba', 'model/taps')]  # short ones that run the model

# --- the same numbers in other processes -----------------------------------------------------------------------------

PROBE = '''
import json, sys, torch
from mamba_interp.model import Mamba, scan_backends
from mamba_interp.tasks import ioi
model = Mamba.load('house')
tokens = ioi(model.tokenizer, n=2, seed=0).clean
found = {}
for kind in (torch.float32, torch.float64):
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        weights = model.to(kind)
        weights.requires_grad_(True)
        weights.zero_grad()
        logits = weights(tokens)
        logits[:, -1].logsumexp(-1).sum().backward()
        found[f'{kind} logits {threads}'] = logits[:, -1, ::500].flatten().tolist()
        found[f'{kind} slopes {threads}'] = [o.grad.norm().item() for o in weights.parameters()]
tiny = torch.tensor([1e-40])
json.dump(dict(scan=scan_backends(), denormals=(tiny*1).item() > 0, capability=torch.backends.cpu.get_cpu_capability(), found=found), sys.stdout)
'''

def python(code, **env):
    "What a fresh Python prints for `code` with `env` added to the environment; a variable that is None is taken out."
    whole = {k: v for k,v in {**os.environ, 'PYTHONPATH': str(pages.root), **env}.items() if v is not None}
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=whole, cwd=pages.root, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout

@pytest.fixture(scope='session')
def native(): return json.loads(python(PROBE, ATEN_CPU_CAPABILITY=None, MAMBA_INTERP_SCAN=None))

def same(a, b, key):
    "Do two lists agree to rounding, on the scale of the largest?"
    a, b = torch.tensor([a, b], dtype=torch.float64)
    return bool(((a-b).abs() <= (1e-4 if '32' in key else 1e-11)*a.abs().max()).all())

def test_threads_do_not_change_the_numbers(native):
    for key,numbers in native['found'].items(): assert same(native['found'][f'{key[:-1]}1'], numbers, key), key

@pytest.mark.parametrize('name', [*PROCESSORS, 'no scan', 'no compiler'])
def test_model_on_another_processor(name, native, tmp_path):
    "Logits and gradients of the bundled model, on 1, 2 and 4 threads, are those of this processor to rounding."
    nothing = dict(PATH='', CC='', XDG_CACHE_HOME=str(tmp_path))
    other = {**PROCESSORS, 'no scan': dict(MAMBA_INTERP_SCAN='off'), 'no compiler': nothing}[name]
    got = json.loads(python(PROBE, **other))
    if name in PROCESSORS and X86: assert got['capability'] == other['ATEN_CPU_CAPABILITY'].upper()
    if name == 'no compiler': assert got['scan']['compiled'] == 'no C compiler (cc, gcc or clang) was found'
    assert got['denormals'], 'loading the compiled scan has changed how torch rounds'
    for key,numbers in native['found'].items(): assert same(numbers, got['found'][key], key), key

@pytest.mark.parametrize('page', PAGES)
@pytest.mark.parametrize('name', PROCESSORS)
def test_page_on_another_processor(name, page, tmp_path):
    nb = pages.run(page, env=PROCESSORS[name], into=tmp_path)
    found = pages.differences(pages.read(page), nb)
    assert not found, f'{page} gives other outputs on a processor with {name}:\n' + '\n'.join(found)

# --- the compiled scan, built for each of them -----------------------------------------------------------------------

def library(build):
    lib, why = scans._built(build)
    if lib is None: pytest.skip(f'the scan for {build} cannot be had here: {why}')
    return lib

def arguments(b, t, e, n, kind=torch.float64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)
    u, dt, A, B, C, h = draw(b, t, e), draw(b, t, e).abs() + .02, -draw(e, n).abs() - .1, draw(b, t, n), draw(b, t, n), draw(b, e, n)
    return [o.to(kind).requires_grad_() for o in (u, dt, A, B, C, h)]

def with_gradients(f, args):
    y, h = f(*args)
    return [y, h, *torch.autograd.grad((y.sum() + h.square().sum()), args)]

def error(got, want): return max(((a.double()-b).abs().max()/b.abs().max()).item() for a,b in zip(got, want))

@pytest.mark.parametrize('build', BUILDS)
def test_each_build_agrees_with_the_loop(build):
    "In both precisions, on sizes that no vector divides, on 1, 2 and 4 threads; for one build the number of threads changes no bit."
    lib = library(build)
    engine = lambda *args: scans._on((lambda *o: scans._c_forward(lib, *o), lambda *o: scans._c_backward(lib, *o)), *args)
    before = torch.get_num_threads()
    try:
        for sizes in ((1, 1, 1, 1), (2, 1, 17, 3), (3, 33, 19, 9), (1, 70, 3, 17), (17, 5, 33, 8)):
            want = with_gradients(scan_by_step, arguments(*sizes))
            for kind,share in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
                runs = []
                for threads in (1, 2, 4):
                    torch.set_num_threads(threads)
                    runs.append(with_gradients(engine, arguments(*sizes, kind)))
                    assert error(runs[-1], want) < share, (sizes, kind, threads)
                assert all(torch.equal(a, b) for other in runs[1:] for a,b in zip(runs[0], other)), (sizes, kind)
    finally: torch.set_num_threads(before)

@pytest.mark.parametrize('build', BUILDS)
def test_each_build_between_two_runs(build, monkeypatch):
    "The mean slopes of `scan_secant` agree with those in plain torch."
    library(build)
    monkeypatch.setenv('MAMBA_INTERP_SCAN', build)
    for sizes in ((2, 1, 3, 1), (3, 33, 19, 9), (1, 7, 40, 17)):
        (u, dt, A, B, C, h), then = arguments(*sizes), arguments(*sizes, seed=1)
        other = [then[i].detach() for i in (0, 1, 3, 4, 5)]
        slopes = [torch.autograd.grad(sum(o.sum() for o in scan_secant(u, dt, A, B, C, h, other, backend=backend)), (u, dt, B, C, h))
                  for backend in ('compiled', 'torch')]
        assert error(*slopes) < 1e-10

def around(b, t, e, n, k, kind=torch.float64, seed=0):
    "Arguments of `conv_silu` and of `gated_scan`."
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)
    conv = [draw(b, t, e), draw(e, k), draw(e), draw(b, k-1, e)]
    gated = [draw(b, t, e), 3*draw(b, t, e), -draw(e, n).abs() - .1, draw(b, t, n), draw(b, t, n), draw(e), draw(b, t, e), 3*draw(b, t, e), draw(b, e, n)]
    return [[o.to(kind).requires_grad_() for o in args] for args in (conv, gated)]

def slopes(f, args):
    outs = f(*args)
    outs = outs if isinstance(outs, tuple) else (outs,)
    return [*outs, *torch.autograd.grad(sum(o.sum() + o.square().sum() for o in outs), args)]

@pytest.mark.parametrize('build', BUILDS)
def test_each_build_of_the_middle_of_a_block(build, monkeypatch):
    "Convolution with silu, and softplus, scan, skip and gate, as token by token, in both precisions; the number of threads changes no bit."
    library(build)
    monkeypatch.setenv('MAMBA_INTERP_SCAN', build)
    before = torch.get_num_threads()
    try:
        for sizes in ((1, 1, 1, 1, 2), (2, 1, 17, 3, 4), (3, 33, 19, 9, 2), (17, 5, 33, 8, 5), (1, 70, 270, 2, 4)):
            wants = [slopes(f, args) for f,args in zip((middle._plain_conv, middle._plain_gated), around(*sizes))]
            for kind,share in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
                for f,args,want in zip((conv_silu, gated_scan), around(*sizes, kind), wants):
                    runs = []
                    for threads in (1, 2, 4):
                        torch.set_num_threads(threads)
                        runs.append(slopes(f, args))
                        assert error(runs[-1], want) < share, (f, sizes, kind, threads)
                    assert all(torch.equal(a, b) for other in runs[1:] for a,b in zip(runs[0], other)), (f, sizes, kind)
    finally: torch.set_num_threads(before)

@pytest.mark.parametrize('build', BUILDS)
def test_malformed_values_in_the_middle_of_a_block(build, monkeypatch):
    "NaN stays where it is and later, and large numbers of either sign do what they do in PyTorch."
    library(build)
    monkeypatch.setenv('MAMBA_INTERP_SCAN', build)
    conv, gated = [[o.detach() for o in args] for args in around(1, 9, 21, 3, 4, torch.float32)]
    conv[0][0, 4, 2] = gated[1][0, 4, 2] = float('nan')
    for got in (conv_silu(*conv), gated_scan(*gated)[0]):
        assert got[0, 4:, 2][:4].isnan().all() and got[0, :4].isfinite().all() and got[0, :, :2].isfinite().all()
    big = torch.tensor([-1e30, -200., -90., 0., 19., 21., 90., 200., 1e30]).view(1, 9, 1)
    one = torch.ones(1, 1)
    assert torch.allclose(conv_silu(big, one), torch.nn.functional.silu(big), rtol=1e-5, atol=1e-35)
    flat = torch.ones(1, 9, 1)
    args = [flat, big, one*0, flat, flat, one[0]*0, flat, flat*50]
    assert torch.allclose(gated_scan(*args)[0], middle._plain_gated(*args, None)[0], rtol=1e-5, atol=1e-35)

@pytest.mark.skipif(not shutil.which('cc'), reason='there is no C compiler')
def test_the_middle_of_a_block_is_compiled_only_where_nobody_listens(monkeypatch):
    "A tap or a hook at a site inside is called, and what it returns is used, as without the compiled code."
    model = Mamba.tiny()
    tokens = torch.arange(22).view(2, 11)
    plain, inside = model(tokens), ('conv_lag', 'conv', 'dt', 'state', 'attention', 'y', 'ssm_out', 'gate', 'gated')
    with monkeypatch.context() as without:
        without.setenv('MAMBA_INTERP_SCAN', 'off')
        wanted = {name: model(tokens, {f'1.{name}': lambda v: v*.5}) for name in inside}
    assert middle._library() is not None
    for name in inside:
        got = model(tokens, {f'1.{name}': lambda v: v*.5})
        assert (got - wanted[name]).abs().max() < 1e-5 < (got - plain).abs().max(), name
    for name in ('conv', 'dt', 'y', 'ssm_out', 'gate', 'gated'):
        handle = getattr(model.layers[1], name).register_forward_hook(lambda module, args, out: out*.5)
        assert (model(tokens) - wanted[name]).abs().max() < 1e-5, name
        handle.remove()
    assert torch.equal(model(tokens), plain)

@pytest.mark.parametrize('build', BUILDS)
def test_each_build_leaves_small_numbers_alone(build):
    "Inside the scan states under 1e-38 become zero; outside they are what they were, on every thread."
    lib = library(build)
    u, dt, A, B, C, h = (o.detach() for o in arguments(8, 40, 64, 4, torch.float32))
    h = h*1e-39
    y, last, _ = scans._c_forward(lib, torch.zeros_like(u), dt, A.T.contiguous(), B, C, h.mT.contiguous(), False)
    assert not X86 or not (y.any() or last.any())
    assert (torch.full((100_000,), 1e-40)*1 > 0).all()

def test_malformed_values_stay_what_they_are():
    "NaN and infinity come out as NaN or infinity, in every build."
    for build in BUILDS:
        lib, _ = scans._built(build)
        if lib is None: continue
        u, dt, A, B, C, h = (o.detach() for o in arguments(1, 9, 5, 3))
        u[0, 4, 2] = float('nan')
        y, _, _ = scans._c_forward(lib, u, dt, A.T.contiguous(), B, C, None, False)
        assert y[0, 4:, 2].isnan().all() and y[0, :4].isfinite().all() and y[0, :, :2].isfinite().all(), build

# --- building it ------------------------------------------------------------------------------------------------------

quick = [o for o in scans._flags if o != '-O3']
needs_compiler = pytest.mark.skipif(not shutil.which('cc'), reason='there is no C compiler')

@pytest.fixture
def cache(tmp_path, monkeypatch):
    "An empty cache of libraries, one way to build them, and nothing remembered."
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    monkeypatch.delenv('MAMBA_INTERP_SCAN', raising=False)
    monkeypatch.setattr(scans, '_threads', ((),))
    monkeypatch.setattr(scans, '_builds', dict(scans._builds, auto=((),)))
    monkeypatch.setattr(scans, '_flags', quick)
    return tmp_path/'cache'/'mamba_interp'

def build(): return scans._built.__wrapped__('auto')

def program(path, text):
    path.write_text(f'#!/bin/sh\n{text}\n')
    path.chmod(0o755)
    return str(path)

@pytest.mark.parametrize('text, said', [
    ('exit 1', 'failed'), ("printf '\\377\\376' >&2; exit 1", 'failed'), ('exit 0', 'No such file'), ('echo "no space left" >&2; exit 1', 'no space left'),
    ('while [ $# -gt 0 ]; do [ "$1" = -o ] && echo junk > "$2"; shift; done', '')])
def test_broken_compiler(text, said, cache, monkeypatch, tmp_path):
    "Whatever is wrong with the compiler, there is a reason and no exception."
    monkeypatch.setenv('CC', program(tmp_path/'broken', text))
    monkeypatch.setenv('PATH', '')
    lib, why = build()
    assert lib is None and said in why and '\n' not in why, why

@needs_compiler
def test_compiler_with_arguments_and_one_that_is_not_there(cache, monkeypatch):
    monkeypatch.setenv('CC', 'cc -g0')
    assert scans._compilers()[0] == [shutil.which('cc'), '-g0']
    for missing in ('/nonexistent/cc', 'cc "unclosed', '   '):
        monkeypatch.setenv('CC', missing)
        assert scans._compilers()[0] == [shutil.which('cc')]

@needs_compiler
@pytest.mark.parametrize('damage', [lambda o: b'', lambda o: b'junk', lambda o: o[:1000], lambda o: o[:-20_000]])
def test_library_in_the_cache_that_is_damaged_is_built_again(damage, cache):
    file = scans._library(scans._compilers()[0], ())
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    lib, why = build()
    assert lib and not why and file.read_bytes() == whole

def test_library_for_another_processor_is_not_called(cache, monkeypatch):
    "A home folder may be shared by machines; one without AVX2 says so and goes on in torch."
    monkeypatch.setattr(scans, '_processor', lambda: ['x86_64', 'flags : sse sse2 avx'])
    assert scans._built.__wrapped__('avx2') == (None, 'this processor has no avx2 fma')
    built_there = SimpleNamespace(scan_needs=Mock(return_value=b'avx avx2 '))
    monkeypatch.setattr(scans.ctypes, 'CDLL', lambda path: built_there)
    with pytest.raises(OSError, match=r'lacks what scan_1.so is built for \(avx2\)'): scans._loaded(Path('scan_1.so'))

def test_key_of_a_library_tells_machines_apart(cache, monkeypatch):
    "Processor, compiler, flags and source are in the name of the file."
    monkeypatch.setattr(scans, '_run', lambda *command: Path(command[-1]).write_bytes(b'lib') if '-o' in command else 'cc 1')
    names = {scans._library(['cc'], ()), scans._library(['gcc'], ()), scans._library(['cc'], ('-mavx2',))}
    monkeypatch.setattr(scans, '_processor', lambda: ['other'])
    names.add(scans._library(['cc'], ()))
    monkeypatch.setattr(scans, '_run', lambda *command: Path(command[-1]).write_bytes(b'lib') if '-o' in command else 'cc 2')
    names.add(scans._library(['cc'], ()))
    assert len(names) == 5

@needs_compiler
def test_cache_that_cannot_be_written(cache, monkeypatch, tmp_path):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'file'))
    lib, why = build()
    assert lib is None and why.startswith(f"{tmp_path/'file'/'mamba_interp'} cannot be written"), why

@needs_compiler
def test_two_processes_build_at_once(cache):
    "Both get a whole library, and nothing else is left in the cache."
    code = f"import importlib; from mamba_interp.model import scan_backends; s = importlib.import_module('mamba_interp.model.compiled_scan'); s._threads = ((),); s._flags = {quick}; s._builds['auto'] = ((),); print(scan_backends()['compiled'] or 'usable')"
    with ThreadPoolExecutor(2) as pool: said = list(pool.map(lambda _: python(code, XDG_CACHE_HOME=str(cache.parent)).strip(), range(2)))
    assert said == ['usable']*2 and sorted(o.suffix for o in cache.iterdir()) == ['.so', '.sum']

def test_unknown_build_is_refused(monkeypatch):
    monkeypatch.setenv('MAMBA_INTERP_SCAN', 'avx-512')
    u, dt, A, B, C, h = arguments(1, 2, 3, 4)
    with pytest.raises(ValueError, match="^MAMBA_INTERP_SCAN is 'avx-512', expected one of .*did you mean 'avx512'"): scan(u, dt, A, B, C)
