"Each page runs from top to bottom, and what is saved in it is what it gives."
import os
import pytest
from docs import pages
from mamba_interp.report import table
from nbformat.v4 import new_code_cell, new_notebook, new_output

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

# --- the comparison: what rounding can change passes, what is a changed finding does not ------------------------------

def page_of(*outputs, source='f()'): return new_notebook(cells=[new_code_cell(source, outputs=list(outputs))])
def printed(text, source='f()'): return page_of(new_output('stream', name='stdout', text=text), source=source)
def displayed(source='f()', **data): return page_of(new_output('display_data', data=data), source=source)
def html(text): return displayed(**{'text/html': text})
def figure(*traces, **layout): return displayed(**{pages.PLOTLY: dict(data=list(traces), layout=layout)})
def line(*y, **more): return dict(type='scatter', x=list(range(len(y))), y=list(y), name='a') | more
def bar(y, half): return line(y, type='bar', error_y=dict(array=[half], arrayminus=[half]))
def heat(*z, **more): return dict(type='heatmap', z=list(map(list, z)), coloraxis='coloraxis') | more
def listed(*rows, columns=('name', 'ours')): return html(table([list(o) for o in rows], columns))

@pytest.mark.parametrize('old, new', [
    ('loss 4.68', 'loss 4.67'), ('at 0x7f0123ab', 'at 0x7f0123cd'), ('error 3e-16', 'error 4e-16'), ('1,000 rows', '1000.0 rows'),
    ('0.95123', '0.95171'), ('0.309', '0.31'), ('[0.000319, 0.2]', '[0.00032, 0.2]'), ('0.551 [0.123, 0.801]', '0.552 [0.125, 0.8]'), ('72 %', '73 %'), ('a\n b', 'a\nb '),
    ('0.003 [-0.008, 0.014]', '0.003 [-0.009, 0.014]'), ('.4711 of it', '.4712 of it'), ('-0.0', '0.0'),
    ('0.z 0.512\nembed 0.511\n1.y 0.3', 'embed 0.512\n0.z 0.511\n1.y 0.3')])
def test_rounding_of_printed_numbers_is_no_difference(old, new): assert not pages.differences(printed(old), printed(new))

@pytest.mark.parametrize('old, new', [
    ('loss 4.68', 'loss 4.72'), ('accuracy 0.95', 'accuracy 0.85'), ('layer 3', 'layer 4'), ('809 of them', '810 of them'), ('yes', 'no'),
    ('error 3e-16', 'error 3e-4'), ('1.0', 'nan'), ('1.0', 'inf'), ('effect 0.2', 'effect -0.2'), ('−0.2', '0.2'), ('0.5 [0.4, 0.6]', '0.5'),
    ('0.5 [0.4, 0.6]', '0.5 [0.2, 0.6]'), ('0.003 [-0.008, 0.014]', '0.003 [0.001, 0.014]'), ('12 %', '13 %'), ('.47', '.52'),
    ('0.z 0.512\nembed 0.311', 'embed 0.512\n0.z 0.311'), ('first\nsecond', 'second\nfirst'), ('a 0.5\nb 0.5', 'a 0.5'),
    ('0.z 0.512\nembed 0.511', '0.z 0.512\n0.y 0.511'), ('layer 3 0.512\nlayer 4 0.511', 'layer 5 0.512\nlayer 4 0.511'),
    ('["a", "b"]', '["b", "a"]'), ('p = 0.0004', 'p = 0.0009')])
def test_changed_text_is_found(old, new): assert pages.differences(printed(old), printed(new))

def test_what_a_page_allows_to_differ():
    "`#| within .01` lets the cell's numbers differ by 1 %, in text, tables and figures, and no further."
    marked = '#| within .01\nf()'
    assert not pages.differences(printed('809 of them', marked), printed('810 of them', marked))
    assert pages.differences(printed('809 of them', marked), printed('830 of them', marked))
    assert pages.differences(printed('3 of them', marked), printed('4 of them', marked))
    curve = lambda *y: displayed(marked, **{pages.PLOTLY: dict(data=[line(*y)], layout={})})
    assert not pages.differences(curve(1., .5), curve(1., .508)) and pages.differences(curve(1., .5), curve(1., .52))

@pytest.mark.parametrize('old, new', [
    (listed(['a', 1.], ['b', 2.385e-4]), listed(['a', 1.], ['b', 2.370e-4])),                    # small beside large
    (listed(['a', (.5, .309, .7)], ['b', .2]), listed(['a', (.5, .31, .7)], ['b', .2])),         # an interval's last place
    (listed(['a', .512], ['b', .511]), listed(['b', .512], ['a', .511])),                        # a near-tie
    (html('<style>.T_0.5</style><b id="T_12abc">0.5</b>'), html('<style>.T_0.6</style><b id="T_12abd">0.5</b>'))])
def test_rounding_in_tables_is_no_difference(old, new): assert not pages.differences(old, new)

@pytest.mark.parametrize('old, new', [
    (listed(['a', 1.], ['b', 2.385e-4]), listed(['a', 1.], ['b', .3])), (listed(['a', 1.], ['b', .0004]), listed(['a', 1.], ['b', .0009])),
    (listed(['a', .6], ['b', .4]), listed(['b', .6], ['a', .4])), (listed(['a', (.5, .4, .6)]), listed(['a', .5])),
    (listed(['a', .5]), listed(['a', None])), (listed(['a', 7], ['b', .5]), listed(['a', 8], ['b', .5])),
    (listed(['a', 12345.6], ['b', .5]), listed(['a', 12345.6], ['b', .6])), (listed(['a', .5]), listed(['a', .5], ['b', .1])),
    (listed(['a', .5]), listed(['a', -.5])), (html('0.5'), html('0.6')), (listed(['a', .5]), html('a 0.5'))])
def test_changed_table_is_found(old, new): assert pages.differences(old, new)

packed = dict(type='scatter', y=dict(dtype='f8', bdata='AAAAAAAA8D8AAAAAAAAAQA=='), name='a')
log = dict(yaxis=dict(type='log'))
two_axes = lambda *y: (line(10., 20.), line(*y, yaxis='y2'))

@pytest.mark.parametrize('old, new', [
    (figure(line(1., 2., 0.)), figure(line(1.0001, 2., 1e-4))), (figure(heat([1., .5], [2.385e-4, 0.])), figure(heat([1., .5], [2.370e-4, 1e-5]))),
    (figure(heat([1.]), heat([2.385e-4])), figure(heat([1.]), heat([2.6e-4]))), (figure(packed), figure(dict(packed, y=[1., 2.001]))),
    (figure(line(.5, customdata=[[.309, .7]])), figure(line(.5, customdata=[[.31, .7]]))), (figure(bar(.5, .2)), figure(bar(.505, .205))),
    (figure(line(.5, 1.3, 1.7, .9, fill='toself')), figure(line(.51, 1.3, 1.7, .9, fill='toself'))),
    (figure(heat([.5], customdata=[[[.1, .9]]])), figure(heat([.51], customdata=[[[.12, .9]]]))), (figure(line(1e-4, 1.), **log), figure(line(1.01e-4, 1.), **log))])
def test_rounding_in_figures_is_no_difference(old, new): assert not pages.differences(old, new)

@pytest.mark.parametrize('old, new', [
    (figure(line(1., 2.)), figure(line(1., 2.1))), (figure(line(1., 2.)), figure(line(1.))), (figure(packed), figure(dict(packed, y=[1., 3.]))),
    (figure(heat([1., .5], [2.385e-4, 0.])), figure(heat([1., .5], [.3, 0.]))), (figure(heat([1., .5])), figure(heat([.9, .5]))),
    (figure(heat([1., .5])), figure(heat([-1., .5]))), (figure(line(1.), line(2.)), figure(line(1.))), (figure(line(1.)), figure(line(1., name='b'))),
    (figure(line(1., error_y=dict(array=[.1]))), figure(line(1.))), (figure(bar(.5, .02)), figure(bar(.505, .02))), (figure(bar(.5, .2)), figure(bar(.5, .3))),
    (figure(heat([.5], customdata=[[[.1, .9]]])), figure(heat([.6], customdata=[[[.1, .9]]]))), (figure(line(1e-4, 1.), **log), figure(line(2e-4, 1.), **log)),
    (figure(*two_axes(.01, .02)), figure(*two_axes(.015, .02))), (figure(line(.5, customdata=[[.3, .7]])), figure(line(.5, customdata=[[.2, .7]]))),
    (figure(line(1., 2.), xaxis=dict(ticktext=['a', 'b'])), figure(line(1., 2.), xaxis=dict(ticktext=['b', 'a']))), (figure(line(1., None)), figure(line(1., 0.))),
    (figure(line(1.)), html('1.0')), (figure(line(1.), annotations=[dict(text='k = 3')]), figure(line(1.), annotations=[dict(text='k = 4')]))])
def test_changed_figure_is_found(old, new): assert pages.differences(old, new)
