"Compare the outputs of a page with the saved ones: what rounding can change is no difference, a changed finding is."
import base64, re
from collections import defaultdict
from math import isfinite

import numpy as np
from bs4 import BeautifulSoup

PLOTLY = 'application/vnd.plotly.v1+json'
WIDGET = 'application/vnd.jupyter.widget-view+json'
CLOSE = 1e-3   # Two numbers are the same if they differ by this share of their size, or of the scale that they are drawn on
NOISE = 1e-6   # … or by this
DIGIT = .02    # … or by one unit of the last printed place, if that is a smaller share than this
MARGIN = .05   # Values with an interval, and its ends, may differ by this share of its width: they are not known better

# --- numbers -------------------------------------------------------------------------------------------------------

number = re.compile(r'(?<![\w.])[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?(?: ?%)?(?![\w])|(?<![\w.])nan\b|(?<![\w.])[-+]?inf\b', re.I)
ids = re.compile(r'0x[0-9a-f]{6,}|circuits-vis-[0-9a-f-]+|\bT_[0-9a-f]{5}')

def value(said): return float(said.replace(',', '').rstrip(' %'))

def measured(said):
    "Is a printed number a measurement, which has been rounded, and not a count or an index?"
    return bool(re.search(r'[.e%]|nan|inf', said, re.I))

def unit(said):
    "One unit of the last place of a printed number: 0.01 for '3.14', 1e-5 for '1.2e-4', 1 for '47 %', 0 for a count."
    digits, _, exponent = said.lower().rstrip(' %').partition('e')
    return 10.**(int(exponent or 0) - len(digits.partition('.')[2])) if measured(said) else 0.

def last_place(*said):
    "The smallest unit of some printed numbers; some formats leave out zeros at the end, so one of them may show fewer digits."
    return min((o for o in map(unit, said) if o), default=0.)

def agree(a, b, place=0., scale=0., within=0.):
    "Are two numbers the same to rounding? `place` is a unit of the last place, `scale` the largest number beside them, `within` what the page allows."
    if not (isfinite(a) and isfinite(b)): return str(a) == str(b)
    size = max(abs(a), abs(b))
    return abs(a-b) <= max(CLOSE*size, min(1.01*place, DIGIT*size), CLOSE*scale, within*size, NOISE)

# --- text and tables ------------------------------------------------------------------------------------------------

def shown(output):
    "What a reader sees of one output as text, without tables; '' for what carries no numbers of ours (stderr, pictures, widgets)."
    if output.output_type == 'stream': return output.text if output.name == 'stdout' else ''
    data = output.get('data', {})
    if WIDGET in data or PLOTLY in data: return ''
    if 'text/html' not in data: return data.get('text/markdown', data.get('text/plain', ''))
    soup = BeautifulSoup(data['text/html'], 'html.parser')
    for o in soup(['style', 'script', 'table']): o.decompose()
    return ' '.join([*soup.get_text(' ').split(), *(o['title'] for o in soup(title=True))])

def tables(output):
    "The tables of one output, each a list of rows, each a list of cells' texts."
    data = output.get('data', {})
    if WIDGET in data or PLOTLY in data or 'text/html' not in data: return []
    soup = BeautifulSoup(data['text/html'], 'html.parser')
    words = lambda cell: ' '.join([cell.get_text(' '), *(o['title'] for o in cell(title=True))])
    return [[[words(cell) for cell in row(['th', 'td'])] for row in table('tr')] for table in soup('table')]

def clean(text): return ' '.join(ids.sub('id', text).split())

def scales(rows):
    "The largest measurement of each column; counts and indices, which may be of anything, do not make a scale."
    columns = defaultdict(float)
    for row in rows:
        for i,cell in enumerate(row):
            columns[i] = max([columns[i], *(abs(value(o)) for o in number.findall(cell) if measured(o) and isfinite(value(o)))])
    return columns

def cells_agree(old, new, scale=0., within=0.):
    "Do two texts have the same words and, to rounding, the same numbers?"
    if number.sub('#', old) != number.sub('#', new): return False
    a, b = number.findall(old), number.findall(new)
    return all(x == y or numbers_agree(x, y, scale, within) for x,y in zip(a, b)) or intervals_agree(old, a, b)

def numbers_agree(x, y, scale, within):
    "The same for two printed numbers; a small one beside large ones has fewer digits to rely on."
    a, b = value(x), value(y)
    size = max(abs(a), abs(b))
    scale = max(scale/100, min(scale, size*50)) if measured(x) and isfinite(size) else 0.
    return agree(a, b, last_place(x, y), scale, within)

def intervals_agree(text, a, b):
    "The same for `value [low, high]`, judged by the interval's width."
    if number.sub('#', text).split() != ['#', '[#,', '#]']: return False
    (value_a, low_a, high_a), (value_b, low_b, high_b) = map(value, a), map(value, b)
    place, width = last_place(*a, *b), min(high_a - low_a, high_b - low_b)
    margin = max(MARGIN*width, 1.01*place if place <= 2*MARGIN*width else 0)
    near = lambda p, q: abs(p-q) <= max(margin, CLOSE*max(abs(p), abs(q)))
    return near(value_a, value_b) and near(low_a, low_b) and near(high_a, high_b)

def row_agrees(old, new, columns, within):
    return len(old) == len(new) and all(cells_agree(a, b, columns[i], within) for i,(a,b) in enumerate(zip(old, new)))

def label(row):
    "A row's words and counts, with a mark for each measurement."
    return [number.sub(lambda m: '#' if measured(m[0]) else m[0], cell) for cell in row]

def values(row): return [o for cell in row for o in number.findall(cell) if measured(o)]

def reordered(old, new, columns, within):
    "Are these the same rows, of which some that tie have changed places?"
    left = list(old)
    for row in new:
        same = next((i for i,o in enumerate(left) if label(o) == label(row) and row_agrees(o, row, columns, within)), None)
        if same is None: return False
        left.pop(same)
    def tie(a, b):
        found = list(zip(values(a), values(b)))
        return len(values(a)) == len(values(b)) > 0 and all(cells_agree(x, y, max(columns.values()), within) for x,y in found)
    return all(label(a) == label(b) or tie(a, b) for a,b in zip(old, new))

def rows_difference(old, new, columns, within=0.):
    "The first difference between two lists of rows, or None."
    if len(old) != len(new): return f'saved {len(old)} rows, now {len(new)}'
    wrong = next((i for i,(a,b) in enumerate(zip(old, new)) if not row_agrees(a, b, columns, within)), None)
    if wrong is None or reordered(old, new, columns, within): return None
    return f'saved {" | ".join(old[wrong])[:300]!r}, now {" | ".join(new[wrong])[:300]!r}'

def text_difference(old, new, within=0.):
    "The first difference between two texts, line by line if they have as many, beyond spacing, addresses and the last place of a number; or None."
    old, new = ([[clean(line)] for line in o.splitlines() if line.strip()] for o in (old, new))
    if len(old) != len(new): old, new = ([[' '.join(row[0] for row in o)]] for o in (old, new))
    return rows_difference(old, new, defaultdict(float), within)

def table_difference(old, new, within=0.):
    "The same for two tables, each number on the scale of its column."
    old, new = ([[clean(cell) for cell in row] for row in o] for o in (old, new))
    return rows_difference(old, new, scales(old), within)

# --- figures --------------------------------------------------------------------------------------------------------

def plain(o):
    "A plotly figure's JSON with its packed arrays as lists of numbers."
    if isinstance(o, dict):
        if set(o) >= {'dtype', 'bdata'}: return unpacked(o)
        return {k: plain(v) for k,v in o.items()}
    return [plain(v) for v in o] if isinstance(o, list) else o

def unpacked(o):
    flat = np.frombuffer(base64.b64decode(o['bdata']), np.dtype(o['dtype']))
    return flat.reshape([int(n) for n in str(o['shape']).split(',')] if 'shape' in o else -1).tolist()

def is_number(o): return isinstance(o, (int, float)) and not isinstance(o, bool)

def walk(o, path=()):
    "Every number of a figure with its path."
    if is_number(o): yield path, o
    elif isinstance(o, (dict, list)):
        for k,v in (o.items() if isinstance(o, dict) else enumerate(o)): yield from walk(v, (*path, k))

def pairs(o, path=()):
    "Every `[low, high]` in nested lists, with its path."
    if isinstance(o, list) and len(o) == 2 and all(map(is_number, o)): yield path, o
    elif isinstance(o, list):
        for i,v in enumerate(o): yield from pairs(v, (*path, i))

def margins(figure):
    "Path -> what the number there may differ by, for values drawn with an interval and for the interval's ends."
    found = {}
    for i,trace in enumerate(figure.get('data', [])):
        at, y = ('data', i), trace.get('y')
        for path,(low,high) in pairs(trace.get('customdata')):
            for name in (('customdata', *path, 0), ('customdata', *path, 1), ('y', *path), ('z', *path)): found[*at, *name] = MARGIN*abs(high-low)
        if trace.get('fill') == 'toself' and isinstance(y, list):  # a band: the lower ends, then the upper ones backwards
            found |= {(*at, 'y', j): MARGIN*abs(y[j]-y[-1-j]) for j in range(len(y)) if is_number(y[j]) and is_number(y[-1-j])}
        error = trace.get('error_y', {})
        for j,(up,down) in enumerate(zip(error.get('array') or [], error.get('arrayminus') or error.get('array') or [])):
            if not (is_number(up) and is_number(down)): continue
            found |= {(*at, *o): MARGIN*(up+down) for o in (('y', j), ('error_y', 'array', j), ('error_y', 'arrayminus', j))}
    return found

class Scales:
    "How large the numbers are that are drawn on one axis or one colour scale of a figure."
    def __init__(self, figure):
        self.figure, self.largest, self.margins = figure, defaultdict(float), margins(figure)
        for path,x in walk(figure):
            if isfinite(x): self.largest[self.group(path)] = max(self.largest[self.group(path)], abs(x))

    def group(self, path):
        "The axis or colour scale that the number at `path` is drawn on; for others, all numbers of the same name."
        names = [o for o in path if isinstance(o, str)]
        trace = self.figure['data'][path[1]] if names[0] == 'data' and len(path) > 2 else {}
        axes = {o: trace.get(f'{o}axis', o) for o in 'xy'}
        first = names[1] if len(names) > 1 else ''
        if trace and first.removeprefix('error_') in axes: return 'axis', axes[first[-1]]
        colour = trace.get('coloraxis') or trace.get('marker', {}).get('coloraxis') or (trace.get('zmin'), trace.get('zmax'), axes['y'])
        if trace and first == 'z': return 'z', colour
        return (*names, path[-1] if first == 'customdata' else None, *((axes['y'], colour) if trace else ()))

    def logarithmic(self, group):
        if group[0] != 'axis': return False
        layout = self.figure.get('layout', {})
        return layout.get(f'{group[1][0]}axis{group[1][1:]}', {}).get('type') == 'log'

    def agree(self, path, a, b, within):
        group = self.group(path)
        if self.logarithmic(group): return agree(a, b, within=max(within, DIGIT))
        largest = self.largest[group]
        return agree(a, b, last_place(repr(a), repr(b)), largest, within) or abs(a-b) <= max(within*largest, self.margins.get(path, 0))

def figure_difference(old, new, within=0., path=(), scales=None):
    "The first difference between two figures' data, or None; each number is judged on the scale it is drawn on."
    scales, at = scales or Scales(old), 'figure' + ''.join(f'[{o}]' if isinstance(o, int) else f'.{o}' for o in path)
    deeper = lambda keys: next(filter(None, (figure_difference(old[k], new[k], within, (*path, k), scales) for k in keys)), None)
    if is_number(old) and is_number(new): return None if scales.agree(path, old, new, within) else f'{at}: saved {old}, now {new}'
    if type(old) is not type(new): return f'{at}: saved {str(old)[:200]}, now {str(new)[:200]}'
    if isinstance(old, dict):
        return deeper(old) if old.keys() == new.keys() else f'{at}: saved keys {sorted(old)}, now {sorted(new)}'
    if isinstance(old, list):
        return deeper(range(len(old))) if len(old) == len(new) else f'{at}: saved {len(old)} values, now {len(new)}'
    return f'{at}: saved {old!r}, now {new!r}' if text_difference(str(old), str(new), within) else None

# --- cells ----------------------------------------------------------------------------------------------------------

def figures(cell): return [plain({k: v for k,v in o.data[PLOTLY].items() if k in ('data', 'layout')}) for o in cell.outputs if PLOTLY in o.get('data', {})]

def first(difference, old, new, what, within):
    "The first difference between two lists of things, or None."
    if len(old) != len(new): return f'saved {len(old)} {what}, now {len(new)}'
    return next(filter(None, (difference(a, b, within) for a,b in zip(old, new))), None)

def cell_difference(old, new, within=0.):
    "The first difference between a cell's saved outputs and its new ones, or None; numbers may differ by the share `within`."
    texts = ['\n'.join(filter(None, map(shown, c.outputs))) for c in (old, new)]
    pictures = [sum(k.startswith('image/') for o in c.outputs for k in o.get('data', {})) for c in (old, new)]
    return (text_difference(*texts, within)
        or first(table_difference, *([t for o in c.outputs for t in tables(o)] for c in (old, new)), 'tables', within)
        or first(figure_difference, figures(old), figures(new), 'figures', within)
        or (f'saved {pictures[0]} pictures, now {pictures[1]}' if pictures[0] != pictures[1] else None))
