"Modules, cells, lines and pages keep the sizes that CONTRIBUTING asks for, and the measure sees what is over them."
import json
from pathlib import Path

import pytest
from docs import measure, pages

FOUND = measure.offenders(pages.root)

@pytest.mark.parametrize('kind', FOUND)
def test_nothing_is_over_its_budget(kind): assert not FOUND[kind], f'{kind}:\n' + '\n'.join(FOUND[kind])

def tree(folder, module, *cells):
    "A tree of one module and one page."
    for o in ('mamba_interp/model', 'nbs/model'): (folder/o).mkdir(parents=True)
    (folder/'mamba_interp'/'model'/'a.py').write_text(module)
    made = [dict(cell_type='code', source=o) for o in cells]
    (folder/'nbs'/'model'/'00_a.ipynb').write_text(json.dumps(dict(cells=made)))
    return folder

def over(folder): return [k.split(' over ')[0] for k,found in measure.offenders(folder).items() if found]

@pytest.mark.parametrize('module, cells, kinds', [
    ('"A module."\n' + 'x = 1\n'*260, (), ['modules', 'median module']),
    ('def f():\n' + '    x = 1\n'*60, (), ['functions']),
    (f'x = "{"a"*120}"\n', (), ['lines']),
    ('', (f'x = "{"a"*120}"',), ['lines']),
    ('', ('#| export\ndef f(): 1\ndef g(): 1\ndef h(): 1',), ['cells']),
    ('', ('#| export\ndef f():\n' + '    x = 1\n'*45,), ['cells']),
    ('', ('x = 1',)*71, ['pages']),
    ('def f(): return 1\n', ('#| export\ndef f(): return 1',), [])])
def test_what_is_over_is_found(tmp_path, module, cells, kinds): assert over(tree(tmp_path, module, *cells)) == kinds
