"Fixtures: each page is run once in a session, two side by side, and the site is built once from those runs; one browser for all tests."
from concurrent.futures import ThreadPoolExecutor, wait
import os, shutil

import pytest
from docs import pages

def pytest_addoption(parser): parser.addoption('--flags', default='', help='run these flagged cells too, e.g. "slow gpu"')

@pytest.fixture(scope='session')
def flags(request): return request.config.getoption('--flags').split()

@pytest.fixture(scope='session')
def executed(request, flags):
    "A function from a page's name to its executed notebook; raises what the page raised."
    calls = [i.callspec.params for i in request.session.items if hasattr(i, 'callspec') and 'executed' in i.fixturenames]
    wanted = {o['page'] for o in calls if 'page' in o}
    pool = ThreadPoolExecutor(os.cpu_count())
    runs = {o: pool.submit(pages.run, o, flags) for o in sorted(wanted, key=lambda o: (not o.startswith('studies/'), o))}  # studies take longest
    yield lambda page=None: runs[page].result() if page else wait(runs.values())
    pool.shutdown(cancel_futures=True)

@pytest.fixture(scope='session')
def finished(executed):
    "Every page of this session has run, or failed."
    executed()

@pytest.fixture(scope='session')
def browser_path():
    "A Chromium to test with; continuous integration must have one."
    found = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'))), None)
    if found: return found
    message = "no browser found for this test: install Chromium or Google Chrome (Debian, Ubuntu: apt-get install chromium)"
    pytest.fail(message) if os.getenv('CI') else pytest.skip(message)

@pytest.fixture(scope='session')
def browser(browser_path):
    from playwright.sync_api import sync_playwright
    flags = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=browser_path, headless=True, args=flags.split())
        yield b
        b.close()

@pytest.fixture(scope='session')
def open_tab(browser):
    "A function from an address to an empty tab that notes in `wrong` what goes wrong in it: errors in the console, and requests that leave this machine."
    def new(address, **options):
        page = browser.new_page(color_scheme='light', **options)
        page.wrong = []
        page.on('console', lambda m: m.type == 'error' and page.wrong.append(m.text))
        page.on('pageerror', lambda e: page.wrong.append(str(e)))
        page.on('request', lambda r: r.url.startswith((address, 'data:', 'blob:')) or page.wrong.append(f'request to {r.url}'))
        return page
    return new
