"The feature explorer in a browser: `make explore` as a user starts it, what is typed and what is then shown."
import os, re, signal, socket, subprocess, time

import psutil, pytest
from docs import pages
from mamba_interp.explorer import ahead, odds, read
from mamba_interp.features import Feature, clamp
from mamba_interp.model import Mamba
from mamba_interp.sae import SAE

TEXT = 'The old man came back and looked at the'   # many tokens may follow
MARKUP = '<script>window.hurt = 1</script> <img src=x onerror="window.hurt = 1"> said'
SITE = '3.block_out'

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

@pytest.fixture(scope='module')
def address(tmp_path_factory):
    "Where `make explore` listens; the environment is there, so it is not made again."
    pytest.importorskip('voila', reason="the explorer's server is not installed: make env")
    port, log = free_port(), tmp_path_factory.mktemp('explorer')/'log.txt'
    with log.open('w') as out:
        server = subprocess.Popen(['make', '-o', 'env', 'explore', f'PORT={port}'], cwd=pages.root, stdout=out, stderr=out, start_new_session=True, env=pages.kernel_env() | {'MAMBA_INTERP_MODEL': 'house'})
    url, end = f'http://127.0.0.1:{port}', time.time() + 120
    while f'{url}/' not in log.read_text():
        assert server.poll() is None and time.time() < end, log.read_text()
        time.sleep(.2)
    yield url
    os.killpg(server.pid, signal.SIGTERM)
    server.wait(30)

@pytest.fixture(scope='module')
def tab(address, open_tab):
    "The opened app."
    page = open_tab(address, viewport=dict(width=1280, height=900))
    page.set_default_timeout(60_000)
    page.goto(address, wait_until='commit', timeout=120_000)
    page.wait_for_selector('.feature-card', timeout=600_000)
    yield page
    page.close()

@pytest.fixture(autouse=True)
def unharmed(tab):
    "After each test the app is up, and nothing went wrong in the browser."
    yield
    assert tab.locator('.explorer').is_visible() and not tab.wrong, tab.wrong
    assert tab.evaluate('window.hurt') is None

@pytest.fixture(scope='module')
def direct():
    "The same model and SAE, run here."
    return Mamba.load('house'), SAE.load(f'house/{SITE}')

def words(o): return re.sub(r'\s+', ' ', o).strip()
def plain(html):
    from bs4 import BeautifulSoup
    return words(BeautifulSoup(html, 'html.parser').get_text(' '))
def panel(tab, name): return tab.locator(f'.explorer-{name}')
def shows(tab, name, text):
    "Wait until a panel shows a text."
    from playwright.sync_api import expect
    expect(panel(tab, name)).to_contain_text(text, timeout=60_000)
def sentences(tab): return tab.locator('.explorer textarea')
def choose(tab, index):
    tab.get_by_label('Feature', exact=True).fill(str(index))
    tab.keyboard.press('Enter')
def strongest(model, sae, text):
    "The feature whose removal moves the next token most, of those that fire on the last token."
    seen = read(model, sae, text)
    base = ahead(model, seen.tokens).probs
    return max(seen.seen.index[0, -1].tolist(), key=lambda i: (ahead(model, seen.tokens, clamp(sae, {i: 0.}), 1).probs - base).abs().sum())

def test_server_listens_on_this_machine_only(address):
    "It answers on the loopback, and on no other address of this machine."
    port = int(address.rsplit(':', 1)[1])
    with socket.create_connection(('127.0.0.1', port), 60): pass
    out = subprocess.run(['make', '-n', '-o', 'env', 'explore', 'PORT=1234'], cwd=pages.root, capture_output=True, text=True).stdout
    assert '--Voila.ip=127.0.0.1 --port=1234' in out
    others = {o.address for many in psutil.net_if_addrs().values() for o in many if o.family == socket.AF_INET} - {'127.0.0.1'}
    for o in others:
        with socket.socket() as s: assert s.connect_ex((o, port)), f'it listens on {o}'

def test_app_fits_its_window(tab, tmp_path):
    "Everything can be seen without scrolling sideways."
    for width in (1280, 800):
        tab.set_viewport_size(dict(width=width, height=900))
        tab.screenshot(path=tmp_path/f'{width}.png', full_page=True)
        assert tab.evaluate('document.documentElement.scrollWidth') <= width
        for name in ('message', 'strips', 'odds', 'card'):
            box = panel(tab, name).bounding_box()
            assert box['x'] >= 0 and box['x'] + box['width'] <= width, (name, box)
        assert panel(tab, 'odds').evaluate('o => o.scrollWidth <= o.clientWidth + 1')
    tab.set_viewport_size(dict(width=1280, height=900))

def test_clamping_shows_what_a_direct_run_gives(tab, direct, tmp_path):
    "Type a sentence, choose a feature, take it away, turn it up: probabilities and text are those of a run without the app."
    model, sae = direct
    index = strongest(model, sae, TEXT)
    tokens = read(model, sae, TEXT).tokens
    base = ahead(model, tokens)
    sentences(tab).fill(TEXT)
    shows(tab, 'strips', 'old man came back')
    choose(tab, index)
    shows(tab, 'card', str(Feature(sae.site, index)))
    tab.get_by_role('button', name='ablate').click()
    shows(tab, 'odds', 'ablated')
    shows(tab, 'changed', f'With {SITE}/{index} ablated')
    off = ahead(model, tokens, clamp(sae, {index: 0.}))
    assert words(panel(tab, 'odds').inner_text()) == plain(odds(model, base, off, 'ablated', width=7))
    assert (off.probs - base.probs).abs().sum() > .01
    tab.get_by_role('button', name='clamp').click()
    shows(tab, 'changed', f'With {SITE}/{index} at ')
    title = re.search(r'at ([\d.e+]+)', panel(tab, 'odds').inner_text())
    assert float(title[1]) > 0
    before = panel(tab, 'odds').inner_text()
    tab.get_by_role('slider').first.press('ArrowLeft')
    tab.wait_for_function('old => document.querySelector(".explorer-odds").innerText != old', arg=before)
    assert model.tokenizer.decode(base.text.tolist()[:1]).strip() in panel(tab, 'plain').inner_text()
    assert panel(tab, 'changed').locator('.token-strip').count() == 1
    tab.screenshot(path=tmp_path/'clamped.png', full_page=True)
    tab.get_by_role('button', name='unchanged').click()
    shows(tab, 'plain', 'Continuation')
    tab.wait_for_function('document.querySelector(".explorer-changed").innerText.trim() == ""')

def test_browsing_and_searching(tab, tmp_path):
    "A search lists other features; a click on one opens its card; another site brings its own SAE."
    listed = tab.locator('.explorer select[size]').first
    every = listed.locator('option').count()
    tab.get_by_label('Fires on').fill('the')
    tab.wait_for_function('n => document.querySelector(".explorer select[size]").options.length < n', arg=every)
    index = listed.locator('option').first.inner_text().split()[0]
    listed.select_option(index=0)
    shows(tab, 'card', f'{SITE}/{index}')
    tab.get_by_label('Fires on').fill('')
    tab.get_by_label('Sort by').select_option('max')
    shows(tab, 'count_note', f'{every:,} of')
    tab.get_by_label('Site').select_option('5.resid')
    shows(tab, 'message', 'at 5.resid')
    shows(tab, 'card', '5.resid/')
    tab.screenshot(path=tmp_path/'another_site.png', full_page=True)
    tab.get_by_label('Site').select_option(SITE)
    shows(tab, 'card', f'{SITE}/')

def test_typed_markup_is_shown_as_text(tab, tmp_path):
    sentences(tab).fill(MARKUP)
    for o in ('<script>window.hurt', '</script>', '<img src=x onerror="window.hurt', '1"> said'): shows(tab, 'strips', o)
    shows(tab, 'odds', 'unchanged')
    tab.get_by_label('Fires on').fill('<img src=x onerror=alert(1)>')
    tab.wait_for_timeout(1000)
    assert tab.locator('.explorer script, .explorer img').count() == 0
    tab.screenshot(path=tmp_path/'markup.png', full_page=True)
    tab.get_by_label('Fires on').fill('')
    for name in ('Model', 'SAE'):
        before = tab.get_by_label(name, exact=True).input_value()
        tab.get_by_label(name, exact=True).fill('<img src=x onerror="window.hurt = 1">')
        tab.keyboard.press('Tab')
        shows(tab, 'message', '<img src=x')
        tab.get_by_label(name, exact=True).fill(before)
        tab.keyboard.press('Tab')
        shows(tab, 'message', 'profiled on')

@pytest.mark.parametrize('text,says', [('', 'there is no text: type at least one character'), ('<|endoftext|>', 'knows none of the characters'), ('a very long text '*200, 'the text is too long'), ('one\n'*20, 'at most 16 are read at once')], ids='empty unknown long many'.split())
def test_bad_text_is_one_sentence(tab, tmp_path, text, says):
    sentences(tab).fill(text)
    shows(tab, 'strips', says)
    assert tab.locator('.explorer .note').count() == 1
    tab.screenshot(path=tmp_path/'bad.png')
    sentences(tab).fill(TEXT)
    shows(tab, 'strips', 'old man came back')
    shows(tab, 'odds', 'unchanged')
    assert tab.locator('.explorer .note').count() == 0

@pytest.mark.parametrize('index', (3072, -1))
def test_feature_out_of_range_is_one_sentence(tab, index):
    choose(tab, index)
    shows(tab, 'card', f'there is no feature {index}: this SAE has features 0 to 3071')
    assert tab.locator('.explorer .note').count() == 1
    choose(tab, 7)
    shows(tab, 'card', f'{SITE}/7')
    assert tab.locator('.explorer .note').count() == 0
