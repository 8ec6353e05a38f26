"Run the pages of `nbs/`, compare their outputs with the saved ones, and write README.md."
import argparse, fnmatch, hashlib, json, os, re, sys, time
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from pathlib import Path

import nbformat
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from docs.outputs import PLOTLY, WIDGET, cell_difference
from mamba_interp.report import write_file

root = Path(__file__).resolve().parent.parent
nbs, built = root/'nbs', root/'_build'/'pages'
settings = ConfigParser(delimiters='=')
settings.read(root/'settings.ini')
settings = settings['DEFAULT']

SHELVES = 'report model tasks training circuits sae lenses features steering studies'.split()  # folders of pages, in the order in which they may import

def plain(page):
    "A page's name without its number, `circuits/graph` for `circuits/02_graph`: what links, modules and the site call it."
    return re.sub(r'(^|/)\d\d_', r'\1', page)

def shelf_of(page): return page.rpartition('/')[0]

def names(*globs):
    "The pages whose name, with or without its number, matches one of `globs` (every page if there is none): the front page, then shelf by shelf, each shelf's front page first."
    every = [o.relative_to(nbs).with_suffix('').as_posix() for o in [*nbs.glob('*.ipynb'), *(p for s in SHELVES for p in nbs.glob(f'{s}/*.ipynb'))]]
    found = sorted(every, key=lambda o: (SHELVES.index(shelf_of(o)) if shelf_of(o) else -1, not o.endswith('index'), o))
    globs = [g.removesuffix('.ipynb') for g in globs]
    return [o for o in found if not globs or any(fnmatch.fnmatch(name, g) for g in globs for name in (o, plain(o)))]

def named(page):
    "The one page of that name, given with or without its number."
    found = names(page)
    if len(found) != 1: raise ValueError(f"{page!r} names {len(found)} pages, expected one of {', '.join(map(plain, names()))}")
    return found[0]

def module_of(nb):
    "The module that a page exports, as `circuits.graph`, or `circuits` for the face of a shelf; None if there is none."
    name = next((d['default_exp'] for c in nb.cells if 'default_exp' in (d := directives(c))), None)
    return name and name.removesuffix('.__init__')

def read(page): return nbformat.read(nbs/f'{page}.ipynb', 4)

def head(cell): return [o.split('|', 1)[1].strip() for o in re.match(r'(?:\s*#\s*\|.*\n?)*', cell.source)[0].splitlines()] if cell.cell_type == 'code' else []

def directives(cell):
    "The `#| name value` and `#| name: value` lines at the head of a code cell, as a dict of text."
    return {k: v.strip() for k,_,v in (o.replace(':', ' ', 1).partition(' ') for o in head(cell))}

def options(cell):
    "Of these, the ones that Quarto reads, `#| name: value`, as YAML gives them."
    return yaml.safe_load('\n'.join(o for o in head(cell) if re.match(r'[\w-]+:', o)) or '{}')

def skipped(cell, flags=()):
    "Is `cell` left out of a run that asked for `flags`?"
    d = directives(cell)
    return d.get('eval') == 'false' or bool(set(settings['tst_flags'].split()) - set(flags) & set(d))

def key(nb):
    "What a run depends on: the page's code, the package and the model asked for."
    h = hashlib.sha256(json.dumps([[c.source for c in nb.cells], os.getenv('MAMBA_INTERP_MODEL', '')]).encode())
    for f in sorted((root/settings['lib_path']).rglob('*')):
        if f.is_file() and '__pycache__' not in f.parts: h.update(f.read_bytes())
    return h.hexdigest()

def kernel_env(threads=1):
    "The environment of a page's kernel: offline unless a hub model was asked for, figures saved as data."
    model = os.getenv('MAMBA_INTERP_MODEL', '')
    offline = {} if '/' in model and not Path(model).exists() else dict(HF_HUB_OFFLINE='1', TRANSFORMERS_OFFLINE='1')
    # glibc gives memory back after every large tensor, and taking it again costs more than most of what pages compute
    memory = dict(MALLOC_MMAP_MAX_='0', MALLOC_TRIM_THRESHOLD_=str(10**10), MALLOC_TOP_PAD_=str(2**26))
    return dict(memory, **os.environ) | dict(OMP_NUM_THREADS=str(threads), PLOTLY_RENDERER='plotly_mimetype', JUPYTER_PREFER_ENV_PATH='1',
        TQDM_DISABLE='1', **({} if os.getenv('HF_HUB_OFFLINE') else offline))

def run(page, flags=(), threads=1, timeout=1800, say=None, env={}, into=built):
    "Execute `page` in a clean kernel, from top to bottom, `into` a folder; cells with a flag not in `flags` keep their outputs; `say` hears of slow progress; `env` is added to the environment."
    nb, start = read(page), time.time()
    last = start
    def tick(cell, cell_index):
        nonlocal last
        if say and time.time() > last+15: last = say(f'{page}: cell {cell_index+1} of {len(nb.cells)}') or time.time()
    source = key(nb)
    for c in nb.cells:
        if skipped(c, flags): c.metadata['tags'] = ['skip-execution']
    client = NotebookClient(nb, extra_arguments=['--log-level=ERROR'], timeout=timeout, kernel_name='python3', resources=dict(metadata=dict(path=str((nbs/page).parent))), record_timing=False, on_cell_start=tick)
    try: client.execute(env=kernel_env(threads) | env)
    except CellExecutionError as e:
        bad = next(i for i,c in enumerate(nb.cells) if any(o.output_type == 'error' for o in c.get('outputs', [])))
        raise RuntimeError(re.sub(r'\x1b\[[0-9;]*m', '', f'{page}, cell {bad} ({nb.cells[bad].id}):\n{e}')) from None
    for c in nb.cells: c.metadata.pop('tags', None)
    nb.metadata['run'] = dict(key=source, seconds=round(time.time()-start, 1))
    (into/page).parent.mkdir(parents=True, exist_ok=True)
    write_file(into/f'{page}.ipynb', nbformat.writes(nb)+'\n')
    return nb

def latest(page):
    "The executed copy of `page` if its code, the package and the model are still the same, or else None."
    try: nb = nbformat.read(built/f'{page}.ipynb', 4)
    except (OSError, nbformat.reader.NotJSONError): return None
    return nb if nb.metadata.get('run', {}).get('key') == key(read(page)) else None

def save(page, nb):
    "Write the outputs of the executed `nb` into `nbs/`, clean: no counts, no progress bars, no tool's metadata."
    for c in nb.cells:
        if c.cell_type != 'code': continue
        c.execution_count = None
        c.outputs = [o for o in c.outputs if o.get('name') != 'stderr' and WIDGET not in o.get('data', {})]
        for o in c.outputs:
            if 'execution_count' in o: o.execution_count = None
    nb.metadata = {'kernelspec': dict(display_name='python3', language='python', name='python3')}
    write_file(nbs/f'{page}.ipynb', json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True)+'\n')

# --- comparing outputs -----------------------------------------------------------------------------------------

def allowed(cell):
    "The share by which a cell's numbers may differ: what `#| within .01` says, or 0."
    return float(directives(cell).get('within') or 0)

def differences(old, new, flags=()):
    "One line for each code cell whose saved outputs are not what the run gave; `#| varies` cells and skipped ones are left out."
    compared = lambda cell: cell.cell_type == 'code' and 'varies' not in directives(cell) and not skipped(cell, flags)
    pairs = [(i, a, b) for i,(a,b) in enumerate(zip(old.cells, new.cells)) if compared(a)]
    return [f'cell {i} ({a.id}): {d}' for i,a,b in pairs if (d := cell_difference(a, b, allowed(a)))]

# --- README and command line -------------------------------------------------------------------------------------

def readme():
    "README.md as the text of `nbs/index.ipynb`: hidden cells left out, figures as their captions, links to the site."
    from execnb.nbio import read_nb
    from nbconvert import MarkdownExporter
    from nbdev.processors import FilterDefaults
    nb = read_nb(nbs/'index.ipynb')
    FilterDefaults()(nb)
    front, cells, address = nb.frontmatter_, [], f"{settings['doc_host']}{settings['doc_baseurl']}"
    for c in nb.cells:
        if c.cell_type == 'raw' or 'AUTOGENERATED' in c.source: continue
        given = options(c)
        c = {k: v for k,v in c.items() if k in ('cell_type', 'id', 'metadata', 'outputs', 'source', 'execution_count')}
        if c['cell_type'] == 'code':
            c['source'] = re.sub(r'^(#\s*\|.*\n?)+', '', c['source']) if given.get('echo', True) else ''
            caption = f"*{given['fig-cap']}* ([the figure]({address}/#{given['label']}))" if 'fig-cap' in given else ''
            c['outputs'] = [dict(output_type='display_data', metadata={}, data={'text/markdown': caption}) if PLOTLY in o.get('data', {}) else o for o in c.get('outputs', [])]
        cells.append(c)
    body, _ = MarkdownExporter().from_notebook_node(nbformat.reads(json.dumps(dict(cells=cells, metadata=dict(language_info=dict(name='python')), nbformat=4, nbformat_minor=5)), 4))
    text = f"# {front['title']}\n\n> {front['description']}\n\n<!-- Written by `make export` from nbs/index.ipynb. -->\n\n{body}".replace('```python\n\n```\n', '')
    text = re.sub(r'(?m)^\| \| \|\n\|---\|---\|\n(?=\| <img )', '', text)  # cards: their pictures are drawings in the text
    text = re.sub(r'(?m)^\| <img [^|]*\| (.*?) <br> (.*) \|$', r'- \1: \2', text)
    text = re.sub(r'\]\(([\w/]+)\.ipynb(#[\w.-]+)?\)', rf']({address}/\1.html\2)', text)
    return re.sub(r'\n{3,}', '\n\n', re.sub(r'(?m)[ \t]+$', '', text)).strip()+'\n'

def run_all(pages, flags=(), after=None):
    "Run `pages` side by side, sharing the cores; calls `after(page, nb)`; returns the errors as text."
    workers = max(1, min(len(pages), os.cpu_count()))
    say = lambda text: print(text, flush=True)
    def one(page):
        say(f'{page}: running')
        try: nb = run(page, flags, threads=max(1, os.cpu_count()//workers), say=say)
        except Exception as e: return f'{page} failed: {e}'
        say(f"{page}: done in {nb.metadata['run']['seconds']} s")
        if after: after(page, nb)
    with ThreadPoolExecutor(workers) as pool: return list(filter(None, pool.map(one, pages)))

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('command', choices=['run', 'readme'])
    p.add_argument('pages', nargs='*', help="names or globs, such as circuits/graph or 'studies/*'; all if none is given")
    p.add_argument('--flags', default='', help=f"run flagged cells too: {settings['tst_flags']}")
    p.add_argument('--save', action='store_true', help='save the outputs in nbs/')
    p.add_argument('--stale', action='store_true', help='only pages that changed since they were last run')
    a = p.parse_intermixed_args()
    if a.command == 'readme': return (root/'README.md').write_text(readme())
    flags, pages = a.flags.split(), names(*a.pages)
    if not pages and not a.stale: sys.exit(f"no page matches {' '.join(a.pages)}; there are {', '.join(map(plain, names()))}")
    if a.stale: pages = [o for o in pages if not latest(o)]
    errors = run_all(pages, flags, save if a.save else None)
    sys.exit('\n'.join(errors) or None)

if __name__ == '__main__': main()
