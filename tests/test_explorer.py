"The feature explorer in a browser: `make explore` as a user starts it, who is let in, what is typed and what is then shown."
import http.cookiejar, http.server, json, os, re, shutil, signal, socket, subprocess, threading, time
import urllib.error, urllib.request
from contextlib import contextmanager

import psutil, pytest
from docs import pages
from mamba_interp.features import Feature, ahead, clamp, odds, read
from mamba_interp.model import Mamba
from mamba_interp.sae import SAE

TEXT = 'The old man came back and looked at the'   # many tokens may follow
MARKUP = '<script>window.hurt = 1</script> <img src=x onerror="window.hurt = 1"> said'
SITE = '3.block_out'

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

ENV = {'MAMBA_INTERP_MODEL': 'house', 'MAMBA_INTERP_TEXT': ''}

def explore(log, *options, cwd=pages.root, **env):
    "`make explore`, writing to a log; the environment is there, so it is not made again."
    command = ['make', '-o', 'env', 'explore', *options]
    return subprocess.Popen(command, cwd=cwd, stdout=log, stderr=log, start_new_session=True, env=pages.kernel_env() | ENV | env)

@contextmanager
def serving(folder, cwd=pages.root, *options, **env):
    "The address that a server prints, while it runs."
    pytest.importorskip('voila', reason="the explorer's server is not installed: make env")
    port, file = free_port(), folder/'log.txt'
    with file.open('w') as log: server = explore(log, f'PORT={port}', *options, cwd=cwd, **env)
    try:
        end = time.time() + 120
        while not (said := re.search(rf'http://\S+:{port}/\S*', file.read_text())):
            assert server.poll() is None and time.time() < end, file.read_text()
            time.sleep(.2)
        yield said[0]
    finally:
        if server.poll() is None: os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)

@pytest.fixture(scope='module')
def printed(tmp_path_factory):
    "The address that `make explore` prints."
    with serving(tmp_path_factory.mktemp('explorer'), MAMBA_INTERP_PAGES='2') as address: yield address

@pytest.fixture(scope='module')
def address(printed):
    "The same without the token."
    return printed.partition('/?')[0]

@pytest.fixture(scope='module')
def tab(address, printed, open_tab):
    "The opened app."
    page = open_tab(address, viewport=dict(width=1280, height=900))
    page.set_default_timeout(60_000)
    page.goto(printed, wait_until='commit', timeout=120_000)
    page.wait_for_selector('.feature-card', timeout=180_000)
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
    shows(tab, 'odds', re.compile(r'at [0-9]'))
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

# who is let in

def ask(url, data=None, jar=None, **headers):
    "Status and text of an answer; a jar keeps cookies, as a browser does."
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar() if jar is None else jar))
    try:
        with opener.open(urllib.request.Request(url, data=data, headers=headers), timeout=120) as o: return o.status, o.read().decode()
    except urllib.error.HTTPError as e: return e.code, e.read().decode()

def kernels():
    "Kernels of servers of this test."
    return [o for o in psutil.process_iter(['cmdline', 'cwd']) if 'ipykernel_launcher' in (o.info['cmdline'] or []) and o.info['cwd'] == str(pages.root/'explore')]

def handshake(address, host, origin, path):
    "The first line of the answer to a websocket's handshake."
    port = int(address.rsplit(':', 1)[1])
    lines = [f'GET {path} HTTP/1.1', f'Host: {host}', 'Upgrade: websocket', 'Connection: Upgrade', 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==', 'Sec-WebSocket-Version: 13', *([f'Origin: {origin}'] if origin else [])]
    with socket.create_connection(('127.0.0.1', port), 30) as s:
        s.sendall('\r\n'.join([*lines, '', '']).encode())
        return s.recv(200).decode('latin-1').splitlines()[0]

def test_without_the_token_nothing_is_started(tab, address, printed):
    "Neither without it, nor with a wrong one, nor with the login cookie alone, whose sender may be a page of another port."
    before, jar = len(kernels()), http.cookiejar.CookieJar()
    token = printed.partition('token=')[2]
    assert len(token) >= 40
    for url in (address, f'{address}/?token=', f'{address}/?token=wrong', f'{address}/?token={token[:-1]}', f'{address}/?i=1'):
        status, said = ask(url, jar=jar)
        assert status == 403 and 'Open the whole address that `make explore` printed' in said, (url, status, said)
    cookie = '; '.join(f"{o['name']}={o['value']}" for o in tab.context.cookies())
    assert cookie and ask(address, Cookie=cookie)[0] == 403
    assert all(o['sameSite'] == 'Strict' and o['httpOnly'] for o in tab.context.cookies() if o['name'].startswith('username'))
    assert len(kernels()) == before

@pytest.mark.parametrize('host', ('evil.example', 'evil.example:80', 'localhost.evil.example', '127.0.0.1.evil.example', '192.168.0.1', 'localhost:1.evil', '0.0.0.0'))
def test_other_names_are_refused(tab, address, printed, host):
    "DNS rebinding: a name that somebody else points here, for pages, files and websockets."
    for path in ('/', printed.partition(address)[2], '/voila/static/voila.js', '/api/kernels/00000000-0000-0000-0000-000000000000', '/nothing'):
        status, said = ask(address + path, Host=host)
        assert status == 403 and 'not one of its own' in said, (path, status, said)
    assert '403' in handshake(address, host, f'http://{host}', '/api/kernels/00000000-0000-0000-0000-000000000000/channels')

@pytest.mark.parametrize('host', ('localhost', '127.0.0.1', '[::1]', 'LOCALHOST'))
def test_own_names_are_answered(tab, address, host):
    "A tunnel may lead here from another port."
    assert ask(f'{address}/voila/static/voila.js', Host=f'{host}:4321')[0] == 200

@pytest.mark.parametrize('origin', ('http://evil.example', 'http://127.0.0.1:1', 'null', 'https://localhost'))
def test_websockets_of_other_pages_are_refused(tab, address, origin):
    "With the user's cookie, too."
    kernel, cookie = kernel_of(tab), '; '.join(f"{o['name']}={o['value']}" for o in tab.context.cookies())
    host = f"{address.partition('//')[2]}\r\nCookie: {cookie}"
    assert '101' in handshake(address, host, address, f'/api/kernels/{kernel}/channels')
    assert '403' in handshake(address, host, origin, f'/api/kernels/{kernel}/channels')
    assert '403' in handshake(address, host.partition('\r')[0], address, f'/api/kernels/{kernel}/channels')

def kernel_of(page): return json.loads(page.locator('#jupyter-config-data').text_content())['kernelId']

def another(tab):
    "A second tab of the same browser, with its cookies."
    with tab.expect_popup() as found: tab.evaluate("() => { window.open('about:blank') }")
    return found.value

def test_no_code_without_a_page_of_ones_own(tab, address):
    "What Voilà does not serve stays unserved, and kernels are not ended by others."
    kernel, cookie = kernel_of(tab), '; '.join(f"{o['name']}={o['value']}" for o in tab.context.cookies())
    for path in ('/api/kernels', '/api/sessions', '/api/contents', '/voila/files/app.ipynb', '/voila/files/voila.py', f'/voila/query/{kernel}', '/login'): assert ask(address + path, Cookie=cookie)[0] in (403, 404)
    assert ask(f'{address}/voila/api/shutdown/{kernel}', b'')[0] == 403
    assert ask(f'{address}/voila/api/shutdown/{kernel}', b'', Cookie=cookie, Origin='http://127.0.0.1:1')[0] == 403
    assert ask(f'{address}/voila/api/shutdown/{kernel}', b'', Cookie=cookie, Origin='null')[0] == 403

@contextmanager
def elsewhere(html):
    "A page of another origin."
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header('Content-Type', 'text/html')
            self.end_headers()
            self.wfile.write(html.encode() if self.path == '/' else b'')
        def log_message(self, *_): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield server.server_port
    finally: server.shutdown()

ATTACK = """<script>window.done = 0; const there = 'ADDRESS';
for (const url of [there + '/', there + '/?i=1', there + '/voila/render/app.ipynb']) {
  for (const how of [{mode: 'no-cors', credentials: 'include'}, {mode: 'cors', credentials: 'include'}, {method: 'POST', mode: 'no-cors', credentials: 'include'}]) fetch(url, how).catch(() => 0).finally(() => window.done++);
}
try { const s = new WebSocket(there.replace('http', 'ws') + '/api/kernels/KERNEL/channels'); s.onopen = () => window.opened = 1; s.onerror = s.onclose = () => window.done++; } catch { window.done++; }
navigator.sendBeacon(there + '/voila/api/shutdown/KERNEL', new FormData());
</script>""" + ''.join(f'<img src="ADDRESS/?{i}">' for i in range(5)) + '<iframe src="ADDRESS/"></iframe><form method="post" action="ADDRESS/voila/api/shutdown/KERNEL" target="f"></form><iframe name="f"></iframe><script>document.forms[0].submit()</script>'

@pytest.mark.parametrize('name', ('127.0.0.1', 'localhost'))
def test_pages_of_other_origins_start_and_end_nothing(tab, address, name):
    "Image tags, requests, frames, forms and sockets of a page of another port, in the browser in which the user is logged in."
    before, kernel = sorted(o.pid for o in kernels()), kernel_of(tab)
    with elsewhere(ATTACK.replace('ADDRESS', address).replace('KERNEL', kernel)) as port:
        page = another(tab)
        page.goto(f'http://{name}:{port}/', wait_until='load')
        page.wait_for_function('window.done >= 10', timeout=60_000)
        page.wait_for_timeout(1000)
        assert page.evaluate('window.opened') is None
        page.close()
    assert sorted(o.pid for o in kernels()) == before

def test_a_name_that_is_rebound_gets_nothing(tab, address, browser_path):
    "A browser that is told that a foreign name is this machine."
    from playwright.sync_api import Error
    port, before = address.rsplit(':', 1)[1], len(kernels())
    browser = tab.context.browser.browser_type.launch(executable_path=browser_path, headless=True, args=['--no-sandbox', '--disable-gpu', '--host-resolver-rules=MAP evil.example 127.0.0.1'])
    try:
        page = browser.new_page()
        answer = page.goto(f'http://evil.example:{port}/')
        assert answer.status == 403 and 'not one of its own' in page.inner_text('body')
        assert page.evaluate("fetch('/voila/static/voila.js').then(o => o.status)") == 403
        opened = f"new Promise(done => {{ const s = new WebSocket('ws://evil.example:{port}/api/kernels/{kernel_of(tab)}/channels'); s.onopen = () => done(1); s.onerror = () => done(0); }})"
        assert page.evaluate(opened) == 0
    except Error as e: pytest.fail(str(e))
    finally: browser.close()
    assert len(kernels()) == before

# nothing is left running

def test_pages_are_limited_and_kernels_end_with_their_pages(tab, printed):
    "explorer_reload_leaves_kernels. Two pages are allowed here: a third gets one sentence, a closed one makes room, a reload leaves none behind."
    assert len(kernels()) == 1
    page = another(tab)
    page.goto(printed, wait_until='commit', timeout=120_000)
    page.wait_for_selector('.feature-card', timeout=180_000)
    third = another(tab)
    assert third.goto(printed).status == 503 and 'At most 2 pages are open at once' in third.inner_text('body')
    first = kernel_of(page)
    page.reload(wait_until='commit', timeout=120_000)
    page.wait_for_selector('.feature-card', timeout=180_000)
    assert kernel_of(page) != first and len(kernels()) == 2
    page.close(run_before_unload=True)
    third.close()
    end = time.time() + 60
    while len(kernels()) > 1 and time.time() < end: time.sleep(.5)
    assert len(kernels()) == 1

def test_a_page_that_is_left_early_ends_its_kernel(tab, printed):
    "A reload in the middle of opening."
    page = another(tab)
    page.goto(printed, wait_until='commit', timeout=120_000)
    page.wait_for_timeout(500)
    page.close()
    end = time.time() + 60
    while len(kernels()) > 1 and time.time() < end: time.sleep(.5)
    assert len(kernels()) == 1

def test_a_large_paste_is_one_sentence(tab):
    "12 MB in the text, and in the search, leave the connection as it was."
    for size in (2_000_000, 12_000_000):
        tab.evaluate("""size => { const o = document.querySelector('.explorer textarea'); o.value = 'a very long text '.repeat(size/17); o.dispatchEvent(new InputEvent('input', {bubbles: true})); }""", size)
        shows(tab, 'strips', 'the text is too long')
        assert tab.locator('.explorer .note').count() == 1
        sentences(tab).fill(TEXT)
        shows(tab, 'strips', 'old man came back')
    tab.evaluate("""() => { const o = document.querySelector('.explorer input[placeholder="a word"]'); o.value = 'x'.repeat(12e6); o.dispatchEvent(new InputEvent('input', {bubbles: true})); }""")
    shows(tab, 'count_note', 'too long to search for')
    tab.get_by_label('Fires on').fill('')
    shows(tab, 'count_note', 'features: index')

# what is asked of make

def ends(*options, **env):
    "What `make explore` says that ends at once."
    out = subprocess.run(['make', '-s', '-o', 'env', 'explore', *options], cwd=pages.root, capture_output=True, text=True, timeout=300, env=pages.kernel_env() | ENV | env)
    lines = [o for o in (out.stdout + out.stderr).splitlines() if not o.startswith(('make', '[Voila] Using', '[Voila] Storing', '[Voila] Serving', '.venv'))]
    assert out.returncode and len(lines) == 1, out.stdout + out.stderr
    return lines[0]

@pytest.mark.parametrize('options,says', [(['TEXT=no such book.txt'], "TEXT is 'no such book.txt', and there is no such file or folder"), (['TEXT=/nowhere/a.txt'], '/nowhere/a.txt'), (["TEXT=it's.txt"], "it's.txt"),
    (['PORT=0'], 'PORT is 0'), (['PORT=80000'], 'PORT is 80000, expected a whole number from 1 to 65535'), (['BIND=192.0.2.1'], "BIND is '192.0.2.1', which is no address of this machine"), (['BIND=no.such.name.invalid'], 'which is no address')], ids=str)
def test_what_cannot_be_served_is_told_at_once(options, says):
    assert says in ends(*([f'PORT={free_port()}'] if 'PORT' not in options[0] else []), *options)

def test_an_empty_text_is_told_at_once(tmp_path):
    (tmp_path/'a b.txt').write_text('')
    assert 'which is empty' in ends(f'PORT={free_port()}', f'TEXT={tmp_path}/a b.txt')

def test_other_addresses_are_warned_of(tmp_path):
    "In one sentence; the address still has a token, and other names are refused there too."
    with serving(tmp_path, pages.root, 'BIND=0.0.0.0') as address:
        said = (tmp_path/'log.txt').read_text()
        assert said.count('everybody who can reach this machine') == 1 and 'token=' in address
        port = re.search(r':(\d+)/', address)[1]
        assert ask(f'http://127.0.0.1:{port}/', Host='evil.example')[0] == 403 and 'Open the whole' in ask(f'http://127.0.0.1:{port}/')[1]

def test_a_folder_with_a_space_and_other_letters(tmp_path, open_tab):
    "`make explore` from a copy of the project, with a text whose name has a space and a quote."
    root = tmp_path/"a bü 漢 it's"
    root.mkdir()
    for o in ('explore', 'mamba_interp'): shutil.copytree(pages.root/o, root/o, ignore=shutil.ignore_patterns('__pycache__'))
    for o in ('Makefile', 'settings.ini'): shutil.copy(pages.root/o, root/o)
    (root/'.venv').symlink_to(pages.root/'.venv')
    (root/'my "book" é.txt').write_text('The old man came back and looked at the storm. '*400)
    with serving(tmp_path, root, 'TEXT=my "book" é.txt', PYTHONPATH=str(root)) as printed:
        page = open_tab(printed.partition('/?')[0])
        page.goto(printed, wait_until='commit', timeout=120_000)
        page.wait_for_selector('.feature-card', timeout=120_000)
        shows(page, 'message', 'profiled on')
        shows(page, 'message', 'my "book" é.txt')
        page.close()
