"Each page runs from top to bottom, and what is saved in it is what it gives."
import os
import pytest
from docs import pages

every_page = pytest.mark.parametrize('page', pages.names())

@every_page
def test_page_runs(page, executed): executed(page)

@every_page
@pytest.mark.skipif(bool(os.getenv('MAMBA_INTERP_MODEL')), reason='saved outputs are those of the bundled model')
def test_saved_outputs_are_current(page, executed, flags):
    found = pages.differences(pages.read(page), executed(page), flags)
    assert not found, f'{page} saved other outputs than it gives now; look, then `make page PAGE={page}`:\n' + '\n'.join(found)

@every_page
def test_saved_page_is_whole(page):
    "At most 2 MB, no saved error, options that are YAML, and a saved figure with a caption wherever a cell is labelled as one."
    nb, size = pages.read(page), (pages.nbs/f'{page}.ipynb').stat().st_size
    assert size <= 2_000_000, f'{page} is {size/1e6:.1f} MB; a page has at most 2 MB: re-run it with `make page PAGE={page}`'
    for i,c in enumerate(nb.cells):
        options, outputs = pages.options(c), c.get('outputs', [])
        assert not any(o.output_type == 'error' for o in outputs), f'{page}, cell {i}: the saved output is an error'
        if not options.get('label', '').startswith('fig-'): continue
        kinds = {k for o in outputs for k in o.get('data', {})}
        assert any(k.startswith('image/') or k in (pages.PLOTLY, 'text/html') for k in kinds), f"{page}, cell {i}: {options['label']} has no saved figure"
        assert len(options.get('fig-cap', '')) > 10, f"{page}, cell {i}: {options['label']} needs a caption that states its finding"

def test_differences_are_found():
    "The comparison sees a changed number, word, figure and picture, and lets rounding and addresses pass."
    from nbformat.v4 import new_code_cell, new_notebook, new_output
    def cell(text=None, **data): return new_notebook(cells=[new_code_cell('f()', outputs=[new_output('stream', name='stdout', text=text)] if text else [new_output('display_data', data=data)])])
    def found(a, b): return pages.differences(a, b)
    for a,b in (('loss 4.68', 'loss 4.67'), ('at 0x7f0123ab', 'at 0x7f0123cd'), ('error 3e-16', 'error 4e-16'), ('1,000 rows', '1000.0 rows'), ('0.95123', '0.95171')): assert not found(cell(a), cell(b)), (a, b)
    for a,b in (('loss 4.68', 'loss 4.72'), ('accuracy 0.95', 'accuracy 0.85'), ('layer 3', 'layer 4'), ('yes', 'no'), ('error 3e-16', 'error 3e-4'), ('1.0', 'nan'), ('1.0', 'inf')): assert found(cell(a), cell(b)), (a, b)
    figure = lambda *y: cell(**{pages.PLOTLY: dict(data=[dict(type='scatter', y=list(y), name='a')], layout={})})
    assert not found(figure(1., 2., 0.), figure(1.0001, 2., 1e-4))
    assert found(figure(1., 2.), figure(1., 2.1)) and found(figure(1., 2.), figure(1.))
    packed = cell(**{pages.PLOTLY: dict(data=[dict(type='scatter', y=dict(dtype='f8', bdata='AAAAAAAA8D8AAAAAAAAAQA=='), name='a')], layout={})})
    assert not found(packed, figure(1., 2.)) and found(packed, figure(1., 3.))
    html = lambda s: cell(**{'text/html': f'<style>.T_{s}</style><b id="T_12abc">{s}</b>'})
    assert not found(html('0.5'), html('0.5')) and found(html('0.5'), html('0.6'))
