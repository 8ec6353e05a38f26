"The package is what the pages export, imports only downwards, and leaves nothing behind on import."
import ast, inspect, importlib, os, re, shutil, subprocess, sys
from pathlib import Path

import pytest
from docs import pages

root, lib = pages.root, pages.root/pages.settings['lib_path']
modules = sorted(o.stem for o in lib.glob('*.py') if not o.stem.startswith('_'))
order = {o[3:]: o for o in pages.names('[0-9][0-9]_*')}

def run_python(code, **env): return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, **env}, cwd=root)

def test_export_leaves_no_diff(tmp_path):
    for o in ('nbs', lib.name): shutil.copytree(root/o, tmp_path/o, ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(root/'settings.ini', tmp_path)
    for o in (tmp_path/lib.name).glob('*.py'):
        if o.name != '__init__.py': o.unlink()
    subprocess.run([Path(sys.executable).with_name('nbdev_export')], cwd=tmp_path, check=True, env={k: v for k,v in os.environ.items() if k != 'IN_TEST'})
    texts = [{o.name: o.read_text() for o in (d/lib.name).glob('*.py')} for d in (root, tmp_path)]
    changed = sorted(k for k in texts[0].keys() | texts[1].keys() if texts[0].get(k) != texts[1].get(k))
    assert not changed, f'not what the pages export: {changed}; run `make export`'

def test_readme_is_the_index(): assert (root/'README.md').read_text() == pages.readme(), 'README.md is not nbs/index.ipynb; run `make export`'

@pytest.mark.parametrize('page', pages.names('[0-9][0-9]_*'))
def test_page_imports_only_from_lower_pages(page):
    for c in pages.read(page).cells:
        if c.cell_type != 'code' or 'import' not in c.source: continue
        for line in re.findall(rf'(?m)^\s*from {lib.name}(?:\.(\w+))? import (.*)', c.source) + [(o, '') for o in re.findall(rf'(?m)^\s*import {lib.name}\.(\w+)', c.source)]:
            for used in [line[0]] if line[0] else re.findall(r'\w+', line[1]):
                assert order.get(used, '') <= page, f'{page} imports {order[used]}, which is not a lower page'

def test_import_needs_no_extra_and_changes_nothing():
    "Importing the package loads none of the development tools and sets no default; it works where they, a GPU and a compiler are missing."
    r = run_python(f'''
import importlib, sys
refused = set("nbdev fastcore execnb pytest sphinx myst_nb playwright jupyterlab nbclient nbconvert mamba_ssm causal_conv1d".split())
class Refuse:
    def find_spec(self, name, *a):
        if name.split(".")[0] in refused: raise ImportError(f"{{name}} is only there for developers")
sys.meta_path.insert(0, Refuse())
import os, random, warnings, numpy as np, torch, transformers, plotly.io as pio, nnsight, circuitsvis
def state(): return (torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(), torch.get_num_threads(), torch.get_rng_state().tolist(), random.getstate(),
                     np.random.get_state()[1].tolist(), pio.templates.default, pio.renderers.default, dict(os.environ), transformers.logging.get_verbosity(), len(warnings.filters))
before = state()
for m in {modules}: importlib.import_module("{lib.name}." + m)
assert all(a == b for a,b in zip(before, state())), [(a, b) for a,b in zip(before, state()) if a != b]
print(*sorted(refused & {{o.split(".")[0] for o in sys.modules}}))
''', CUDA_VISIBLE_DEVICES='', CC='/nonexistent', PATH='')
    assert r.returncode == 0, r.stderr
    assert r.stdout.strip() == '', f'importing prints or loads: {r.stdout}'

def undocumented(o, name):
    "What a reader of `o`'s entry on the site would miss."
    from docs.site import arguments
    if not (inspect.getdoc(o) or '').strip() or o.__doc__.startswith(f'{name}('): yield f'{name} has no docstring'
    for argument,_,_,comment in arguments(o):
        if not comment and argument != 'returns': yield f'{name}: argument {argument} has no comment'

@pytest.mark.parametrize('module', modules)
def test_exports_are_documented(module):
    "Each exported function and class has a docstring and a comment for each argument; each public method of such a class has a docstring."
    m, missing = importlib.import_module(f'{lib.name}.{module}'), []
    for name in getattr(m, '__all__', []):
        o = getattr(m, name)
        if getattr(o, '__module__', '') != m.__name__ or not (inspect.isfunction(o) or inspect.isclass(o)): continue
        missing += undocumented(o, name)
        if inspect.isclass(o): missing += [f'{name}.{k} has no docstring' for k,v in vars(o).items() if k[0] != '_' and inspect.isfunction(getattr(v, '__func__', v)) and k != 'forward' and not inspect.getdoc(v)]
    assert not missing, '\n'.join(missing)

def test_files_are_small():
    listed = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=root, capture_output=True, text=True, check=True).stdout
    sizes = {o: (root/o).stat().st_size for o in listed.split('\0') if o and (root/o).is_file()}
    assert len(sizes) > 30 and not (big := [k for k,v in sizes.items() if v > 16e6]), f'over 16 MB: {big}'

def test_versions_agree():
    "One version, in settings.ini; every requirement is pinned."
    assert f"__version__ = \"{pages.settings['version']}\"" in (lib/'__init__.py').read_text()
    norm = lambda s: re.split(r'[=<>!~\[ ]', s)[0].lower().replace('_', '-')
    pinned = {norm(o) for o in (root/'constraints.txt').read_text().splitlines() if '==' in o}
    wanted = {norm(o) for k in ('requirements', 'dev_requirements') for o in pages.settings[k].split()}
    assert not wanted - pinned, f'not in constraints.txt: {sorted(wanted - pinned)}'
