"The package is what the pages export, imports only downwards, and leaves nothing behind on import."
import ast, inspect, importlib, os, re, shutil, subprocess, sys
from pathlib import Path

import pytest
from docs import pages

root, lib = pages.root, pages.root/pages.settings['lib_path']
shelves = pages.SHELVES
faces = [f'{lib.name}.{s}' for s in shelves]
modules = sorted(f"{lib.name}.{'.'.join(o.relative_to(lib).with_suffix('').parts)}" for o in lib.rglob('*.py') if not o.stem.startswith('_'))

def run_python(code, **env): return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, **env}, cwd=root)

def package_files(folder): return {o.relative_to(folder).as_posix(): o for o in folder.rglob('*.py')}

def test_export_leaves_no_diff(tmp_path):
    for o in ('nbs', lib.name): shutil.copytree(root/o, tmp_path/o, ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(root/'settings.ini', tmp_path)
    for name,o in package_files(tmp_path/lib.name).items():
        if name != '__init__.py': o.unlink()
    env = {k: v for k,v in os.environ.items() if k != 'IN_TEST'}
    subprocess.run([Path(sys.executable).with_name('nbdev_export')], cwd=tmp_path, check=True, env=env)
    texts = [{k: o.read_text() for k,o in package_files(d/lib.name).items()} for d in (root, tmp_path)]
    changed = sorted(k for k in texts[0].keys() | texts[1].keys() if texts[0].get(k) != texts[1].get(k))
    assert not changed, f'not what the pages export: {changed}; run `make export`'

def test_readme_is_the_index(): assert (root/'README.md').read_text() == pages.readme(), 'README.md is not nbs/index.ipynb; run `make export`'

# --- who may import from whom ---------------------------------------------------------------------------------------

APART = {'circuits', 'sae'}  # side by side: neither imports the other
order = {module: i for i,page in enumerate(pages.names()) if (module := pages.module_of(pages.read(page)))}

def imports(source, package):
    "Each import from the package in a text: (module, name, text), the module as `circuits.graph`; `package` is where a relative one starts."
    tree = ast.parse(re.sub(r'(?m)^(\s*)[%!].*$', r'\1pass', source))
    for n in ast.walk(tree):
        if isinstance(n, ast.Import):
            for o in n.names:
                if o.name.startswith(f'{lib.name}.'): yield o.name.partition('.')[2], None, ast.unparse(n)
        if isinstance(n, ast.ImportFrom):
            parts = package.split('.')
            base = '.'.join(parts[:len(parts)+1-n.level]) if n.level else ''
            module = '.'.join(filter(None, (base, n.module)))
            if module.split('.')[0] != lib.name: continue
            for o in n.names: yield module.partition('.')[2], o.name, ast.unparse(n)

def wrong_imports(source, module, package=lib.name):
    "What is wrong with the imports of a text that belongs to `module`, such as `circuits.graph`; of a shelf's face, `circuits`; or of the front page, ''."
    shelf, is_face = module.split('.')[0], '.' not in module
    for used,name,text in imports(source, package):
        if not used: used, name = ('model' if name[:1].isupper() or name not in shelves else name), None if name in shelves else name
        other = used.split('.')[0]
        if other not in shelves: yield f'{text}: there is no shelf {other}'
        elif other == shelf:
            if used == shelf and f'{shelf}.{name}' in order: used = f'{shelf}.{name}'   # a module, taken from its package
            if used == shelf and not is_face: yield f'{text}: inside a shelf, import from the module'
            elif used not in order: yield f'{text}: no page exports {used}'
            elif not is_face and order[used] > order[module]: yield f'{text}: {used} is not a lower page'
        else:
            if used != other: yield f'{text}: across shelves, import from the face, {lib.name}.{other}'
            if (name or '').startswith('_'): yield f'{text}: {name} is private to {other}'
            if {shelf, other} == APART: yield f'{text}: {shelf} and {other} stand side by side'
            elif shelf and shelves.index(other) > shelves.index(shelf): yield f'{text}: {other} is not a lower shelf'

@pytest.mark.parametrize('page', pages.names())
def test_page_imports_only_from_lower_pages(page):
    "From lower pages of its shelf, from the faces of lower shelves; no private name crosses a shelf's wall."
    nb = pages.read(page)
    module = pages.module_of(nb) or ''
    assert module.split('.')[0] == pages.shelf_of(page) and module == pages.plain(page).replace('/', '.').removesuffix('index').strip('.')
    wrong = [o for c in nb.cells if c.cell_type == 'code' for o in wrong_imports(c.source, module)]
    assert not wrong, '\n'.join(wrong)

@pytest.mark.parametrize('file', [o for o in package_files(lib) if o not in ('__init__.py', '_modidx.py')])
def test_module_imports_only_from_lower_modules(file):
    parts = Path(file).with_suffix('').parts
    module, package = '.'.join(o for o in parts if o != '__init__'), '.'.join((lib.name, *parts[:-1]))
    assert len(parts) == 2 and parts[0] in shelves, f'{file} stands on no shelf'
    wrong = list(wrong_imports((lib/file).read_text(), module, package))
    assert not wrong, '\n'.join(wrong)

@pytest.mark.parametrize('module, source, said', [
    ('circuits.graph', 'from mamba_interp.features import Feature', 'features is not a lower shelf'),
    ('circuits.graph', 'from mamba_interp.sae import SAE', 'side by side'), ('sae.train', 'def f():\n    from mamba_interp.circuits import Graph', 'side by side'),
    ('circuits.graph', 'from mamba_interp.circuits.planted import planted', 'circuits.planted is not a lower page'),
    ('circuits.graph', 'from mamba_interp.circuits import Graph', 'import from the module'),
    ('circuits.graph', 'from mamba_interp.model.mamba import Mamba', 'import from the face, mamba_interp.model'),
    ('circuits.graph', 'from mamba_interp.report import _drawn', '_drawn is private to report'), ('circuits.graph', 'import mamba_interp.report.charts', 'from the face'),
    ('circuits.graph', 'from ..model.mamba import Mamba', 'from the face'), ('circuits.graph', 'from ..features import Feature', 'not a lower shelf'),
    ('circuits.graph', 'from .planted import planted', 'not a lower page'), ('circuits.graph', 'from . import planted', 'not a lower page'),
    ('report.charts', 'from mamba_interp import Mamba', 'model is not a lower shelf'), ('report.charts', 'from mamba_interp import studies', 'studies is not a lower shelf'),
    ('model', 'from mamba_interp.tasks import Task', 'tasks is not a lower shelf'), ('circuits.graph', 'from mamba_interp.graph import Graph', 'there is no shelf graph'),
    ('circuits.graph', 'from mamba_interp.circuits.nothing import x', 'no page exports circuits.nothing'), ('', 'from mamba_interp.circuits.graph import Graph', 'from the face')])
def test_wrong_import_is_found(module, source, said):
    found = list(wrong_imports(source, module, f"{lib.name}.{module.split('.')[0]}"))
    assert len(found) == 1 and said in found[0], found

@pytest.mark.parametrize('module, source', [
    ('circuits.graph', 'from mamba_interp.model import Mamba, record\nfrom mamba_interp.circuits.patching import patch_effects\nfrom .attribution import _slope'),
    ('circuits.graph', 'from mamba_interp.circuits.graph import Graph'), ('circuits', 'from mamba_interp.circuits import Graph\nfrom ..report import face'),
    ('studies.ioi', 'from mamba_interp import Mamba\nfrom mamba_interp.features import card\nimport mamba_interp'), ('', 'from mamba_interp.studies import direct')])
def test_right_import_is_not(module, source): assert not list(wrong_imports(source, module, f"{lib.name}.{module.split('.')[0]}"))

def test_every_folder_of_pages_is_a_shelf():
    "In the list of `docs/pages.py` and in the package's own, and each with a front page."
    assert sorted(o.parent.name for o in (root/'nbs').glob('*/*.ipynb') if o.name == 'index.ipynb') == sorted(shelves)
    assert {o.parent.relative_to(root/'nbs').as_posix() for o in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts} == {'.', *shelves}
    assert set(shelves) < set(importlib.import_module(lib.name).__all__)

# --- faces ---------------------------------------------------------------------------------------------------------

def exported(file):
    "The names that a module exports, but for functions that it puts on a class as methods (`Circuit.save = save`)."
    tree = ast.parse(file.read_text())
    values = {o.id: n.value for n in tree.body if isinstance(n, ast.Assign) for o in n.targets if isinstance(o, ast.Name)}
    methods = {o.attr for n in tree.body if isinstance(n, ast.Assign) for t in n.targets for o in ast.walk(t) if isinstance(o, ast.Attribute)}
    return set(ast.literal_eval(values['__all__'])) - methods

def clashes(exports):
    "Names that more than one module exports, with the modules."
    owners = {k: sorted(m for m,v in exports.items() if k in v) for v in exports.values() for k in v}
    return {k: v for k,v in owners.items() if len(v) > 1}

@pytest.mark.parametrize('shelf', shelves)
def test_face_offers_what_its_modules_export(shelf):
    "Every exported name of the shelf, each of one module."
    exports = {o.stem: exported(o) for o in (lib/shelf).glob('[!_]*.py')}
    assert not clashes(exports), f'the same name in two modules of {shelf}: {clashes(exports)}'
    face = importlib.import_module(f'{lib.name}.{shelf}')
    wanted = set().union(*exports.values())
    assert wanted == set(face.__all__), f'nbs/{shelf}/index.ipynb lacks {sorted(wanted - set(face.__all__))} and has {sorted(set(face.__all__) - wanted)}'
    for module,found in exports.items():
        for k in found: assert getattr(face, k) is getattr(importlib.import_module(f'{lib.name}.{shelf}.{module}'), k), k

def test_clash_is_found(): assert clashes(dict(a={'x', 'y'}, b={'y', 'z'})) == {'y': ['a', 'b']}

def methods_put_on(file):
    "(class, method) of every `@patch_to(class)` in a module."
    puts = lambda o: isinstance(o, ast.Call) and getattr(o.func, 'id', '') == 'patch_to' and isinstance(o.args[0], ast.Name)
    return [(d.args[0].id, f.name) for f in ast.walk(ast.parse(file.read_text())) if isinstance(f, ast.FunctionDef)
            for d in f.decorator_list if puts(d)]

@pytest.mark.parametrize('shelf', shelves)
def test_a_class_on_a_face_is_whole(shelf):
    "A class that other modules add methods to has them all when nothing else was imported."
    grown = {}
    for file in (lib/shelf).glob('[!_]*.py'):
        for owner,method in methods_put_on(file): grown.setdefault(owner, {}).setdefault(file.stem, []).append(method)
    many = {owner: [m for o in found.values() for m in o] for owner,found in grown.items() if len(found) > 1 and owner[0] != '_'}
    for owner,methods in many.items():
        r = run_python(f"from {lib.name}.{shelf} import {owner}; print([o for o in {methods!r} if not hasattr({owner}, o)])")
        assert r.stdout.strip() == '[]', f'{owner}, taken from the face of {shelf}, lacks {r.stdout or r.stderr}'

def test_faces_load_nothing():
    "The package and its shelves import without torch, plotly or a module of their own; a name loads what it needs."
    r = run_python(f'''
import importlib, sys
for o in ["{lib.name}", *{faces}]: importlib.import_module(o)
heavy = sorted(o for o in sys.modules if o in ("torch", "numpy", "plotly", "transformers", "pandas") or o.startswith("{lib.name}.") and o.count(".") > 1)
assert heavy == ["{lib.name}.report.faces"], heavy
from {lib.name} import Mamba, Site, record, replace, ablate, steer, chain, circuits
assert "torch" in sys.modules and "plotly" not in sys.modules
assert circuits.Graph.__module__ == "{lib.name}.circuits.graph"''')
    assert r.returncode == 0, r.stderr

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
for m in {modules}: importlib.import_module(m)
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
    m, missing = importlib.import_module(module), []
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
