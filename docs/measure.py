"""Measure how a tree reads: the sizes, widths and walls that CONTRIBUTING asks for.

`python -m docs.measure` prints the report of this tree; `python -m docs.measure TREE` that of another, which may
be an older one whose modules lie flat in one folder. Nothing of the tree is imported."""
import ast, json, re, statistics, sys
from pathlib import Path
from typing import NamedTuple

LIB = 'mamba_interp'
MODULE, MEDIAN, FUNCTION, WIDTH, WIDE = 250, 200, 50, 110, 120   # lines, lines, lines, characters, characters
DEFINITIONS, CELL, PAGE, PARAMETERS = 2, 40, 70, 6                # in an exported cell, lines of it, cells, names
DEFINED = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef

class Text(NamedTuple):
    "A module, a page's code or another Python file."
    name:str    # Path without its ending, numbers of pages left out
    source:str  # Python
    tree:object # Its syntax tree
    cells:list  # Of a page: all cells, as (kind, source); else empty

def parsed(source):
    "The syntax tree of Python in a notebook, whose magics are left out."
    try: return ast.parse(re.sub(r'(?m)^(\s*)[%!].*$', r'\1pass', source))
    except SyntaxError: return ast.Module([], [])

# --- reading a tree --------------------------------------------------------------------------------------------

def modules(root):
    "The modules that pages export, without faces."
    files = sorted(o for o in (root/LIB).rglob('*.py') if not o.stem.startswith('_'))
    return [Text(o.relative_to(root/LIB).with_suffix('').as_posix(), s := o.read_text(), parsed(s), []) for o in files]

def pages(root):
    "The notebooks, shelf by shelf."
    found = []
    for file in sorted((root/'nbs').rglob('*.ipynb')):
        if '.ipynb_checkpoints' in file.parts: continue
        cells = [(c['cell_type'], ''.join(c['source'])) for c in json.loads(file.read_text())['cells']]
        source = '\n'.join(o for kind,o in cells if kind == 'code')
        trees = [parsed(o) for kind,o in cells if kind == 'code']
        body = [n for o in trees for n in o.body]
        name = file.relative_to(root/'nbs').with_suffix('').as_posix()
        found.append(Text(name, source, ast.Module(body, []), cells))
    return found

def others(root):
    "Tests, the site's own code and the explorer's app."
    files = [o for folder in ('tests', 'docs', 'explore') for o in sorted((root/folder).rglob('*.py'))]
    return [Text(o.relative_to(root).as_posix(), s := o.read_text(), parsed(s), []) for o in files]

# --- counting --------------------------------------------------------------------------------------------------

def length(node): return node.end_lineno - node.lineno + 1

def functions(texts):
    "(text, node) of every function and method, nested ones too."
    return [(o, n) for o in texts for n in ast.walk(o.tree) if isinstance(n, FUNCTIONS)]

CAPTION = re.compile(r'#\s*\|\s*(fig|tbl)-(cap|alt):')   # Quarto reads a caption from one line

def written(text):
    "The lines that somebody writes: nbdev makes `__all__` and the first line, and a caption stands on one line."
    named = lambda n: isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__'
    about = lambda n: n is text.tree.body[0] and ast.get_docstring(text.tree) is not None
    made = {i for n in text.tree.body if named(n) or about(n) for i in range(n.lineno, n.end_lineno + 1)}
    return [line for i,line in enumerate(text.source.splitlines(), 1) if i not in made and not CAPTION.match(line)]

def wide(texts, width):
    "(text, line) of written lines that are wider."
    return [(o, line) for o in texts for line in written(o) if len(line) > width]

def crowded(texts):
    "(text, node) of assignments of more than a pair of values written out; what a call returns may have more."
    found = [(o, n) for o in texts for n in ast.walk(o.tree) if isinstance(n, ast.Assign)]
    size = lambda node: len(node.elts) if isinstance(node, ast.Tuple) else 0
    return [(o, n) for o,n in found if size(n.value) > 2 and any(size(t) > 2 for t in n.targets)]

class Cell(NamedTuple):
    "An exported cell."
    page:str         # Its page
    at:int           # Its index there
    definitions:int  # Functions, methods by `patch_to` and classes that it defines
    lines:int        # Its lines without the directive

def exported_cells(texts):
    "The exported cells that define something."
    found = []
    for o in texts:
        for i,(kind,source) in enumerate(o.cells):
            if kind != 'code' or not re.match(r'\s*#\s*\|\s*export', source): continue
            defined = sum(isinstance(n, DEFINED) for n in parsed(source).body)
            if defined: found.append(Cell(o.name, i, defined, len(source.strip().splitlines()) - 1))
    return found

def parameters(node):
    "Count a function's parameters, without `self`, `cls`, `*args` and `**kwargs`."
    a = node.args
    names = [o.arg for o in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    return len(names) - (names[:1] in (['self'], ['cls']))

def public(text):
    "(name, node) of a module's public functions and of the public methods and `__init__` of its classes."
    for n in text.tree.body:
        if not isinstance(n, DEFINED) or n.name.startswith('_'): continue
        if isinstance(n, FUNCTIONS): yield n.name, n
        else: yield from ((f'{n.name}.{o.name}', o) for o in n.body if isinstance(o, FUNCTIONS)
            and (o.name == '__init__' or not o.name.startswith('_')))

def long_signatures(texts):
    "`module.name (n)` of public signatures over the budget."
    return [f'{o.name}.{name} ({parameters(n)})' for o in texts for name,n in public(o) if parameters(n) > PARAMETERS]

# --- names ------------------------------------------------------------------------------------------------------

def exported(text):
    "Names in a module's `__all__`."
    for n in text.tree.body:
        if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__': return ast.literal_eval(n.value)
    return []

def home(text):
    "The module that a page exports, or the module itself, as `shelf/name` or `name`."
    found = re.search(r'#\s*\|\s*default_exp\s+(\S+)', text.source) if text.cells else None
    return found[1].replace('.', '/') if found else text.name

def imported(text):
    "(module as `shelf/name`, name) of all that a text imports from the package."
    parts = [LIB, *text.name.split('/')[:-1]] if not text.cells and not text.name.endswith('.py') else [LIB]
    for n in ast.walk(text.tree):
        if not isinstance(n, ast.ImportFrom): continue
        base = parts[:len(parts) + 1 - n.level] if n.level else []
        module = '.'.join(filter(None, (*base, n.module))).split('.')
        if module[0] == LIB: yield from (('/'.join(module[1:]), o.name) for o in n.names)

def unused(mods, texts):
    "(module, name) of exported names that no other module, page or test imports."
    users = {}
    for o in texts:
        for _,name in imported(o): users.setdefault(name, set()).add(home(o))
    return [(o.name, k) for o in mods for k in exported(o) if not users.get(k, set()) - {o.name}]

def private(texts, shelves):
    "(text, module, name) of private names taken from another module, or only those from another shelf."
    wall = (lambda name: name.split('/')[0]) if shelves else (lambda name: name)
    found = [(o, module, name) for o in texts for module,name in imported(o) if name.startswith('_')]
    return sorted({(o.name, module, name) for o,module,name in found
        if not name.startswith('__') and wall(home(o)) != wall(module)})

def first_figure(page):
    "The index of the first cell with a figure; None where there is none."
    figures = [i for i,(kind,o) in enumerate(page.cells) if kind == 'code' and re.search(r'(?m)^#\s*\|\s*label:\s*fig-', o)]
    return figures[0] if figures else None

# --- the report --------------------------------------------------------------------------------------------------

def share(part, whole): return f'{part/max(1, whole):.1%}'

def spread(sizes):
    "Median, 95th percentile and largest, as text."
    sizes = sorted(sizes) or [0]
    return f'median {statistics.median(sizes):g}, 95 % up to {sizes[int(.95*(len(sizes) - 1))]}, largest {sizes[-1]}'

def widths(texts):
    "Shares of lines that are wide, as text."
    total = sum(len(o.source.splitlines()) for o in texts)
    over = [len(wide(texts, o)) for o in (WIDTH, WIDE)]
    return f'{share(over[0], total)} over {WIDTH}, {share(over[1], total)} over {WIDE} characters (of {total:,} lines)'

def code_rows(mods, nbs):
    "What the report says of sizes and widths."
    sizes = [len(o.source.splitlines()) for o in mods]
    lines = [length(n) for _,n in functions(mods)]
    cells = exported_cells(nbs)
    over = sum(o > MODULE for o in sizes)
    long = sum(o > FUNCTION for o in lines)
    many = sum(o.definitions > DEFINITIONS for o in cells)
    tall = sum(o.lines > CELL for o in cells)
    each = sum(o.definitions for o in cells)/max(1, len(cells))
    yield 'module lines', f'{spread(sizes)}; {over} of {len(sizes)} over {MODULE}'
    yield 'function lines', f'{spread(lines)}; {long} of {len(lines)} over {FUNCTION}'
    yield 'width of modules', widths(mods)
    yield 'width of page code', widths(nbs)
    yield 'assignments beyond pairs', f'{len(crowded(mods))} in modules, {len(crowded(nbs))} in pages'
    yield 'definitions an exported cell', f'mean {each:.1f}; {many} of {len(cells)} cells over {DEFINITIONS}'
    yield 'lines of an exported cell', f'{spread([o.lines for o in cells])}; {tall} over {CELL}'

def wall_rows(mods, nbs, rest):
    "What the report says of names and walls."
    names = [k for o in mods for k in exported(o)]
    idle = unused(mods, [*mods, *nbs, *rest])
    crossing = private([*mods, *nbs], shelves=True)
    within = private([*mods, *nbs], shelves=False)
    yield 'exported names', f'{len(names)}, of which {len(idle)} are imported nowhere else'
    yield 'private names', f'{len(within)} taken from another module, {len(crossing)} of them across a shelf wall'
    yield f'signatures over {PARAMETERS} parameters', str(len(long_signatures(mods)))
    yield 'pages', f'{len(nbs)}; {sum(len(o.cells) > PAGE for o in nbs)} over {PAGE} cells'

def report(root):
    "The report of a tree, as text."
    mods, nbs = modules(root), pages(root)
    rows = [*code_rows(mods, nbs), *wall_rows(mods, nbs, others(root))]
    out = [f'{k:30}{v}' for k,v in rows]
    out += ['', f'{"page":34}cells  first figure at']
    for o in nbs:
        at = first_figure(o)
        out.append(f'{o.name:34}{len(o.cells):5}  {"none" if at is None else at}')
    return '\n'.join(out)

# --- budgets ------------------------------------------------------------------------------------------------------

def offenders(root):
    "Kind -> a line for each that is over its budget."
    mods, nbs = modules(root), pages(root)
    cells = exported_cells(nbs)
    sizes = [len(o.source.splitlines()) for o in mods]
    middle = statistics.median(sizes) if sizes else 0
    return {
        f'modules over {MODULE} lines': [f'{o.name} ({n})' for o,n in zip(mods, sizes) if n > MODULE],
        f'median module over {MEDIAN} lines': [f'{middle:g}'] if middle > MEDIAN else [],
        f'functions over {FUNCTION} lines': [f'{o.name}.{n.name}' for o,n in functions(mods) if length(n) > FUNCTION],
        f'lines over {WIDTH}': [f'{o.name}: {line.strip()[:60]}' for o,line in wide([*mods, *nbs], WIDTH)],
        f'cells over {DEFINITIONS} definitions': [f'{o.page} [{o.at}]' for o in cells if o.definitions > DEFINITIONS],
        f'cells over {CELL} lines': [f'{o.page} [{o.at}] ({o.lines})' for o in cells if o.lines > CELL],
        f'pages over {PAGE} cells': [f'{o.name} ({len(o.cells)})' for o in nbs if len(o.cells) > PAGE]}

def main():
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    if not (root/'nbs').is_dir(): sys.exit(f'{root} has no folder nbs')
    print(report(root))
    if not len(sys.argv) > 1:
        for kind,found in offenders(root).items():
            if found: print(f'\n{kind}: {len(found)}', *found[:40], sep='\n  ')

if __name__ == '__main__': main()
