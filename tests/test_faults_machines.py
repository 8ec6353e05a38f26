"What people type or what a machine lacks, around `make` and the scans: one sentence, and nothing lost."
import importlib, os, shutil, socket, subprocess, sys
import pytest
import torch
from docs import pages, serve
from mamba_interp import model as scans

# --- make ---------------------------------------------------------------------------------------------------------------

@pytest.fixture
def site(tmp_path, monkeypatch):
    (tmp_path/'index.html').write_text('here')
    monkeypatch.setattr(serve, 'site', tmp_path)

@pytest.mark.parametrize('port', ['abc', '0', '80000', '-1', '8e3', '', '８０００'])
def test_serve_port_that_is_none(port, site):
    "reliability, make serve: PORT=80000 served on 14464, a word ended in a traceback."
    with pytest.raises(ValueError, match='^PORT is .*, expected a whole number from 1 to 65535$'): serve.server(port, '127.0.0.1')

def test_serve_port_that_is_taken(site):
    "reliability, make serve: a port that is taken ended in a traceback."
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        other.listen()
        port = str(other.getsockname()[1])
        with pytest.raises(OSError, match=f'^Port {port} is taken; choose another: make serve PORT='): serve.server(port, '127.0.0.1')

def test_serve_nothing_and_nowhere(site, monkeypatch, tmp_path):
    with pytest.raises(OSError, match='cannot be served .*; try: make serve'): serve.server('8000', '192.0.2.1')
    (tmp_path/'index.html').unlink()
    with pytest.raises(FileNotFoundError, match='There is no _site/ yet; run: make site'): serve.server('8000', '127.0.0.1')

@pytest.fixture
def make(tmp_path):
    "A function that runs our Makefile in an empty folder, with a stand-in for Python that has or lacks pip."
    if not shutil.which('make'): pytest.skip('make is not installed')
    for name in ('Makefile', 'constraints.txt', 'settings.ini', 'setup.py'): shutil.copy(pages.root/name, tmp_path)
    stand_in = tmp_path/'python'
    stand_in.write_text('''#!/bin/bash
echo "$*" >> calls
case "$*" in
    --version) echo Python 3.12.0;;
    *"-m venv"*) mkdir -p .venv/bin; cp python .venv/bin/python; touch .venv/pip;;
    *"pip --version"*) test -f .venv/pip;;
    *"install"*) exit $PIP_FAILS;;
esac
''')
    stand_in.chmod(0o755)
    def run(*arguments, fails='0'):
        done = subprocess.run(['make', *arguments], cwd=tmp_path, capture_output=True, text=True, env=os.environ | dict(PIP_FAILS=fails))
        return done.returncode, done.stdout
    return run

@pytest.mark.parametrize('python, said', [
    ('/nonexistent', 'PYTHON is /nonexistent, which is no program; expected Python 3.11 or later'), ('false', 'PYTHON is false, expected Python 3.11 or later'),
    ('', 'Python 3.11 or later was not found')])
def test_env_with_a_python_that_is_none(python, said, make, tmp_path):
    "reliability, make env PYTHON=/nonexistent: was ignored where there was a .venv."
    (tmp_path/'.venv').mkdir()
    code, text = make('env', f'PYTHON={python}')
    assert code and said in text

def test_env_broken_off_before_pip(make, tmp_path):
    "reliability, Ctrl-C while the venv gets its pip: ended for ever in `No module named pip`."
    (tmp_path/'.venv'/'bin').mkdir(parents=True)
    shutil.copy(tmp_path/'python', tmp_path/'.venv'/'bin'/'python')
    assert make('env', 'PYTHON=./python')[0] == 0 and (tmp_path/'.venv'/'ready').exists()
    assert '-m venv --clear .venv' in (tmp_path/'calls').read_text()

def test_env_without_an_index(make, tmp_path):
    "reliability, no index: pip spoke of versions that conflict; the next run goes on."
    code, text = make('env', 'PYTHON=./python', fails='1')
    assert code and 'the package index could not be reached' in text and not (tmp_path/'.venv'/'ready').exists()
    assert make('env', 'PYTHON=./python')[0] == 0

def test_page_is_saved_whole(monkeypatch, tmp_path):
    "reliability, make page: a full disk or a kill leaves the older page."
    nb = pages.read(pages.named('model/taps'))
    monkeypatch.setattr(pages, 'nbs', tmp_path)
    pages.save('taps', nb)
    whole = (tmp_path/'taps.ipynb').read_text()
    def full(f): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='taps.ipynb cannot be written: No space left on device'): pages.save('taps', nb)
    assert (tmp_path/'taps.ipynb').read_text() == whole and len(list(tmp_path.iterdir())) == 1

# --- scans --------------------------------------------------------------------------------------------------------------

def given(**other):
    made = dict(u=torch.randn(2, 5, 3), dt=torch.rand(2, 5, 3), A=-torch.rand(3, 4), B=torch.randn(2, 5, 4), C=torch.randn(2, 5, 4), h=torch.randn(2, 3, 4))
    return made | other

@pytest.mark.parametrize('f', [scans.scan, scans.scan_by_step])
@pytest.mark.parametrize('other, said', [
    (dict(u=None), 'u is a NoneType, expected a tensor'), (dict(B=[[1.]]), 'B is a list'), (dict(dt=1.), 'dt is a float'), (dict(h='zero'), 'h is a str'),
    (dict(u=torch.ones(2, 5, 3, dtype=torch.long)), 'not torch.int64, but u has these'), (dict(dt=torch.ones(2, 5, 3, dtype=torch.bool)), 'not torch.bool, but dt'),
    (dict(C=torch.ones(2, 5, 4, dtype=torch.complex64)), 'not torch.complex64, but C'), (dict(A=torch.ones(3, 4).to_sparse()), 'A is a sparse tensor'),
    (dict(u=torch.ones(5, 3)), r'u should have axes \(b t e\)'), (dict(h=torch.ones(1, 3, 4)), 'h should have axes'),
    (dict(u=torch.ones(2, 0, 3)), 'at least one token'), (dict(A=torch.ones(3, 0)), 'at least one number along each axis')])
def test_malformed_arguments_of_a_scan(f, other, said):
    with pytest.raises(ValueError, match=said) as e: f(**given(**other))
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('at, other', [(0, torch.ones(2, 5, 2)), (1, torch.ones(2, 4, 3)), (2, torch.ones(2, 5, 9)), (4, torch.ones(3, 3, 4)), (3, None), (4, None)])
def test_malformed_other_run_is_not_read(at, other):
    "The compiled scan reads memory by the first run's sizes, so the other run has to have them."
    now = given()
    then = [now[o] for o in ('u', 'dt', 'B', 'C', 'h')]
    then[at] = other
    with pytest.raises(ValueError, match='of the other run|has a first state'): scans.scan_secant(*now.values(), then)

def test_empty_batch():
    "No rows in, no rows out, on every backend."
    for backend in ('compiled', 'torch'):
        if scans.scan_backends()[backend]: continue
        args = [o[:0].requires_grad_() if name != 'A' else o.requires_grad_() for name,o in given().items()]
        y, h = scans.scan(*args, backend=backend)
        assert y.shape == (0, 5, 3) and h.shape == (0, 3, 4)
        assert [o.shape for o in torch.autograd.grad(y.sum() + h.sum(), args)] == [o.shape for o in args]

@pytest.mark.parametrize('chunk', [0, -1, 2.5, '64', None, True])
def test_malformed_chunk(chunk):
    x, dt, A, B = torch.randn(1, 5, 4, 3), torch.rand(1, 5, 4), -torch.rand(4), torch.randn(1, 5, 2, 3)
    with pytest.raises(ValueError, match='^chunk is .*, expected a whole number of at least 1'): scans.scan_heads(x, dt, A, B, B, chunk=chunk)

# --- the explorer's settings ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('pages_open', ['many', '0', '-1', '2.5', '1e1', '\u0663', '9'*5000])
def test_pages_at_once_that_are_no_number(pages_open):
    "reliability, explorer: MAMBA_INTERP_PAGES=many ended in a traceback of the settings."
    pytest.importorskip('voila')
    command = [sys.executable, '-c', 'import runpy, sys; runpy.run_path(sys.argv[1])', str(pages.root/'explore'/'voila.py')]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | dict(MAMBA_INTERP_PAGES=pages_open, MAMBA_INTERP_TEXT=''))
    assert done.returncode == 1 and done.stdout == '', done
    assert done.stderr.startswith('MAMBA_INTERP_PAGES is ') and 'whole number from 1 to 999' in done.stderr and done.stderr.count('\n') == 1, done.stderr
