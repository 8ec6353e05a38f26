"Build `_site/` as `_quarto.yml` describes it, from the executed pages: with Quarto where it is installed, otherwise with Sphinx."
import ast, inspect, re, shutil, subprocess, textwrap, tokenize
from fnmatch import fnmatch
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from itertools import groupby
from pathlib import Path

import yaml
from execnb.nbio import mk_cell, read_nb, write_nb
from fastcore.xtras import dict2obj, obj2dict
from fastcore.docments import docments
from nbdev.frontmatter import _fm2dict
from nbdev.process import Processor
from nbdev.processors import FilterDefaults, add_show_docs, exec_show_docs
from nbdev.showdoc import BasicMarkdownRenderer
from docs import pages
from docs.pages import PLOTLY, WIDGET, root, settings
from mamba_interp.figures import Figure, site_assets

staged, sphinx, static, site = (root/o for o in ('_build/staged', '_build/sphinx', '_build/static', '_site'))
quarto = yaml.safe_load((root/'_quarto.yml').read_text())

# --- API entries -------------------------------------------------------------------------------------------------

def arguments(sym):
    "What a function or class takes, as its source says it: (name, type, default, comment) per argument, then per return value under 'returns'."
    source = textwrap.dedent(inspect.getsource(sym))
    node, comments = ast.parse(source).body[0], {o.start[0]: o.string.lstrip('# ') for o in tokenize.generate_tokens(StringIO(source).readline) if o.type == tokenize.COMMENT}
    text = lambda o: ast.unparse(o) if o else ''
    init = next((o for o in node.body if isinstance(o, ast.FunctionDef) and o.name == '__init__'), None) if inspect.isclass(sym) else node
    if not init: return [(o.target.id, text(o.annotation), text(o.value), comments.get(o.end_lineno, '')) for o in node.body if isinstance(o, ast.AnnAssign)]
    a, said = init.args, docments(sym, args_kwargs=True)
    plain = [*a.posonlyargs, *a.args]
    found = [*zip(plain, [None]*(len(plain)-len(a.defaults)) + a.defaults), *([(a.vararg, None)] if a.vararg else []), *zip(a.kwonlyargs, a.kw_defaults), *([(a.kwarg, None)] if a.kwarg else [])]
    rows = [({a.vararg: '*', a.kwarg: '**'}.get(o, '') + o.arg, text(o.annotation), text(d), said.get(o.arg) or '') for o,d in found if o.arg not in ('self', 'cls')]
    result = ('returns', text(init.returns), '', said.get('return') or '')
    return rows + [result]*(not inspect.isclass(sym) and any(result[1:]))

class Entry(BasicMarkdownRenderer):
    "An API entry: heading, source link, signature, sentence, table of arguments."
    def _repr_markdown_(self):
        rows = arguments(self.sym)
        sig = ', '.join(k + (f'={d}' if d else '') for k,_,d,_ in rows if k != 'returns')
        used = [i for i in range(4) if i == 0 or any(o[i] for o in rows)]
        line = lambda cells: '| ' + ' | '.join(cells[i].replace('\n', ' ') for i in used) + ' |'
        code = lambda o: f"`{o.replace('|', 'or')}`" if o else ''
        table = [line(('', 'type', 'default', '')), line(['---']*4)] + [line((f"**{k.replace('*', '')}**", code(t), code(d), m.replace('|', '&#124;'))) for k,t,d,m in rows]
        url = f"{settings['git_url']}/blob/{settings['branch']}/{self.sym.__module__.replace('.', '/')}.py#L{inspect.getsourcelines(self.sym)[1]}"
        return '\n\n'.join([f"{'#'*self.title_level} {self.nm}", f'```python\n{self.nm}({sig})\n```', f"{inspect.getdoc(self.sym) or ''} [source]({url}){{.source}}", *(['\n'.join(table)] if rows else [])])

# --- staging: what both builders read ------------------------------------------------------------------------------

def shown_outputs(cell):
    "A processor: outputs as both builders show them: plotly as the HTML that `figures.js` draws, no progress bars, no warnings."
    if cell.cell_type != 'code': return
    cell.outputs = [o for o in cell.get('outputs', []) if o.get('name') != 'stderr' and WIDGET not in o.get('data', {})]
    for o in cell.outputs:
        if PLOTLY in o.get('data', {}):
            drawing = o.data.pop(PLOTLY)
            if 'text/html' not in o.data: o.data['text/html'] = [Figure(obj2dict(drawing)).to_table()]

class fill_entries(Processor):
    "Show what `show_doc` says of the exported module, without running the page's cells again."
    def begin(self): self.module = next((c.directives_['default_exp'][0] for c in self.nb.cells if 'default_exp' in c.directives_), None)
    def cell(self, cell):
        if cell.cell_type != 'code' or not (call := re.search(r'^show_doc\(.*', cell.source, re.M | re.S)): return
        entry = eval(call[0], dict(vars(import_module(f"{settings['lib_path']}.{self.module}")), show_doc=Entry))
        cell.outputs = [dict2obj(dict(output_type='display_data', metadata={}, data={'text/markdown': [entry._repr_markdown_()]}))]

class entries_in_order(Processor):
    "nbdev adds the entries of a cell with several definitions last one first; here they come as written."
    def begin(self):
        runs = [(added, list(o)) for added,o in groupby(self.nb.cells, lambda c: bool(getattr(c, 'has_sd', 0)))]
        self.nb.cells = [c for added,run in runs for c in (run[::-1] if added else run)]

class Staged(FilterDefaults):
    "nbdev's processors, with our API entries in place of its own, then ours."
    def base_procs(self):
        ours = {add_show_docs: [add_show_docs, entries_in_order], exec_show_docs: [fill_entries]}
        return [p for o in super().base_procs() for p in ours.get(o, [o])] + [shown_outputs]

def link_names(text, anchors):
    "nbdev's absolute links to API entries as links within the site, to the nearest entry that there is."
    base = re.escape(f"{settings['doc_host']}{settings['doc_baseurl']}/")
    def near(m):
        page, anchor = m[1], (m[2] or '').lstrip('#')
        while anchor and anchor not in anchors.get(page, ()): anchor = anchor.rpartition('.')[0]
        return page + ('#'+anchor if anchor else '')
    text = re.sub(rf'{base}([\w.-]+\.html)(#[\w.-]+)?', near, text)
    return re.sub(r'\]\((?:\d\d_)?(\w+)\.ipynb(#[\w.-]+)?\)', r'](\1.html\2)', text)

def stage():
    "Write every page, processed, to `_build/staged`, as Quarto reads it; returns {html name: notebook}."
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    done = {}
    for page in pages.names():
        nb = read_nb(pages.built/f'{page}.ipynb' if pages.latest(page) else pages.nbs/f'{page}.ipynb')
        Staged()(nb)
        nb.metadata.pop('widgets', None)  # no widget is shown, and their state would load require.js
        done[nb.frontmatter_['output-file']] = nb
    text = lambda o: ''.join(o.data['text/markdown'])
    entries = lambda nb: [o for c in nb.cells for o in c.get('outputs', []) if 'text/markdown' in o.get('data', {})]
    anchors = {k: {m.lower() for o in entries(nb) for m in re.findall(r'^#+ (\S+)$', text(o), flags=re.M)} for k,nb in done.items()}
    for nb in done.values():
        for c in nb.cells:
            if c.cell_type == 'markdown': c.source = link_names(c.source, anchors)
        for o in entries(nb): o.data['text/markdown'] = link_names(text(o), anchors)
        write_nb(nb, staged/Path(nb.path_).name)
    return done

def copy_static(folder):
    "The scripts and styles that every page shares, each once."
    folder.mkdir(parents=True, exist_ok=True)
    for name,text in site_assets().items(): (folder/name).write_text(text)
    for o in (root/'docs'/'site.css', root/'docs'/'favicon.svg', *Path(find_spec('ziamath').origin).parent.glob('fonts/STIXTwoMath*')): shutil.copy(o, folder)

# --- Sphinx, where there is no Quarto --------------------------------------------------------------------------------

def sphinx_cells(nb):
    "The staged cells as MyST reads them: Quarto's cell options become tags, captions and anchors."
    options = [pages.options(c) for c in nb.cells]
    numbers = {o: i+1 for i,o in enumerate(o['label'] for o in options if o.get('label', '').startswith('fig-'))}
    refer = lambda m: f'[Figure {numbers[m[1]]}](#{m[1]})' if m[1] in numbers else m[0]
    markdown = lambda s: mk_cell(re.sub(r'(?<![\w`])@(fig-[\w-]+)', refer, s), 'markdown')
    for c,o in zip(nb.cells, options):
        if c.cell_type == 'raw':
            front = _fm2dict(c.source)
            yield markdown(f"# {front['title']}\n\n:::{{container}} lead\n{front['description']}\n:::")
        elif c.cell_type == 'markdown': yield markdown(c.source)
        elif o.get('output') == 'asis': yield markdown('\n\n'.join(''.join(x.data['text/markdown'] if 'data' in x else x.text) for x in c.outputs))
        elif o.get('include', True):
            c.source = re.sub(r'^(\s*#\s*\|.*\n?)+', '', c.source)
            if not o.get('output', True): c.outputs = []
            c.metadata['tags'] = ['remove-input']*(not o.get('echo', True)) + ['hide-input']*bool(o.get('code-fold'))
            number = numbers.get(o.get('label'))
            if number: yield markdown(f'<a id="{o["label"]}"></a>')
            yield c
            if number: yield markdown(f':::{{container}} figure-caption\n**Figure {number}.** {o["fig-cap"]}\n:::')

def shelves():
    "The sidebar of `_quarto.yml`: (caption, names of pages) per section."
    def expand(o): return [p for p in pages.names() if fnmatch(f'{p}.ipynb', o)] if isinstance(o, str) else []
    return [(o['section'], expand(o['contents'])) for o in quarto['website']['sidebar']['contents'] if 'section' in o]

def build_with_sphinx(done):
    "Sphinx with `docs/conf.py`; returns its warnings."
    from sphinx.cmd.build import build_main
    for o in (sphinx, root/'_build'/'html'): shutil.rmtree(o, ignore_errors=True)
    sphinx.mkdir(parents=True)
    copy_static(static)
    stem = {Path(nb.path_).stem: Path(name).stem for name,nb in done.items()}
    for name,nb in done.items():
        nb.cells = list(sphinx_cells(nb))
        if name == 'index.html':
            nb.cells.append(mk_cell('\n\n'.join(f'```{{toctree}}\n:hidden:\n:caption: {k}\n\n' + '\n'.join(stem[o] for o in v) + '\n```' for k,v in shelves() if v), 'markdown'))
        write_nb(nb, (sphinx/name).with_suffix('.ipynb'))
    log, built = root/'_build'/'sphinx.log', root/'_build'/'html'  # myst-nb leaves copies of the pages beside its output
    code = build_main(['-q', '-E', '-c', str(root/'docs'), '-w', str(log), '-d', str(root/'_build'/'doctrees'), str(sphinx), str(built)])
    if code: raise RuntimeError(f'Sphinx could not build the site: {log.read_text()[-3000:]}')
    shutil.move(built, site)
    return log.read_text()

def build_with_quarto(done):
    copy_static(staged)
    shutil.copy(root/'_quarto.yml', staged)
    subprocess.run(['quarto', 'render', staged], check=True)
    shutil.move(staged/quarto['project']['output-dir'], site)
    return ''

def build():
    "Build the site; returns the builder's warnings."
    done = stage()
    shutil.rmtree(site, ignore_errors=True)
    warnings = (build_with_quarto if shutil.which('quarto') else build_with_sphinx)(done)
    print(f'The site is in {site.resolve()}: `make serve` shows it, or open {(site/"index.html").resolve()}')
    return warnings

if __name__ == '__main__': build()
