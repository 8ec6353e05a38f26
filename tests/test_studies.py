"Each study opens with what was found, ends with its limits, and is a card on the front pages that says nothing else."
import re

import pytest
from docs import pages
from mamba_interp.studies import read_study, small_figure

NO_STUDY = {'studies/index', 'studies/study_cards', 'studies/how_do_i'}
studies = [o for o in pages.names('studies/*') if pages.plain(o) not in NO_STUDY]
FRONTS = {'studies/index': '', 'index': 'studies/'}   # front page -> where it finds the studies

def texts(page): return [c.source for c in pages.read(page).cells]

def shown(front):
    "The cards as a front page saved them."
    outputs = [o for c in pages.read(front).cells for o in c.get('outputs', []) if 'study-card' in str(o.get('data', {}).get('text/markdown', ''))]
    assert len(outputs) == 1, f'{front} should show the cards once'
    return outputs[0].data['text/markdown']

@pytest.mark.parametrize('page', studies)
def test_study_opens_with_what_was_found(page):
    cells = texts(page)
    at = next((i for i,o in enumerate(cells) if o.startswith('**What was found.**')), None)
    assert at is not None and at < 8, f'{page} does not open with what was found'
    figure = next((i for i,o in enumerate(cells) if re.search(r'(?m)^#\| label: fig-', o)), None)
    assert 'fig-found' in cells[figure] and figure < 9, f'the first figure of {page} is not that of its finding'
    sentences = re.findall(r'[.!?](?= [A-Z]|$)', cells[at].removeprefix('**What was found.**').strip())
    assert len(sentences) == 3, f'{page} says in {len(sentences)} sentences what was found, expected three'

@pytest.mark.parametrize('page', studies)
def test_figure_of_the_finding_is_asserted(page):
    code = next(o for o in texts(page) if re.search(r'(?m)^#\| label: fig-found$', o))
    assert re.search(r'\bassert\b|test_eq\(', code), f'no condition stands beside the figure that {page} opens with'

@pytest.mark.parametrize('page', studies)
def test_study_ends_with_its_limits(page):
    last = texts(page)[-1]
    assert last.startswith('## Limits') and last.count('*Try it.*') == 1, f'{page} does not end with Limits and Try it'

@pytest.mark.parametrize('front', FRONTS)
@pytest.mark.parametrize('page', studies)
def test_study_has_its_card(front, page):
    study, cards = read_study(pages.nbs/f'{page}.ipynb'), shown(front)
    rows = [o for o in cards.splitlines() if f'[{study.title}]({FRONTS[front]}{study.page}.ipynb)' in o]
    assert len(rows) == 1, f'{front} has {len(rows)} cards of {page}'
    assert rows[0].removesuffix(' |').endswith(study.finding), f'the card of {page} says something else than the study'
    assert study.finding in next(o for o in texts(page) if o.startswith('**What was found.**'))

@pytest.mark.parametrize('front', FRONTS)
@pytest.mark.parametrize('page', studies)
def test_card_shows_the_saved_figure(front, page):
    from urllib.parse import quote
    study = read_study(pages.nbs/f'{page}.ipynb')
    drawn = quote(small_figure(study.drawing), safe=" <>/:;=,()'+!@")
    assert drawn in shown(front), f'the card of {page} on {front} shows another figure than the page: run {front} again'

@pytest.mark.parametrize('front', FRONTS)
def test_no_card_without_a_study(front): assert shown(front).count('<img') == len(studies)
