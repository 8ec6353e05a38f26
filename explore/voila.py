"Settings of the explorer's server: who is let in, how many pages are served at once, when kernels end."
import html, os, re, shutil, socket, sys, time
from ipaddress import ip_address
from pathlib import Path
from uuid import uuid4

from jupyter_server import CallContext
from jupyter_server.auth import IdentityProvider
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from jupyter_server.utils import url_path_join
from tornado.ioloop import IOLoop
from tornado.web import HTTPError, RequestHandler
from traitlets import Integer
from voila.shutdown_kernel_handler import VoilaShutdownKernelHandler
from voila.tornado.handler import TornadoVoilaHandler

ADDRESS = 'Open the whole address that `make explore` printed, with its token.'
NAME = ('The explorer is asked for under the name {}, which is not one of its own: '
        'open the address that `make explore` printed.')
FULL = 'At most {} pages are open at once, as each takes half a gigabyte: close one, then reload this page.'
OPEN = ('With BIND={} everybody who can reach this machine there and learns the address with its token can use '
        'the explorer as you, and nothing is encrypted: leave BIND out to serve this machine only.')

def refuse(said, folder=None):
    "End at once with one sentence, before there are threads to wait for."
    if folder: shutil.rmtree(folder, ignore_errors=True)
    print(said, file=sys.stderr, flush=True)
    os._exit(1)

def loopback(ip):
    "Is this an address on which only this machine can ask?"
    try: return ip == 'localhost' or ip_address(ip).is_loopback
    except ValueError: return False

def check_address(app):
    "End with one sentence, or warn in one, before anything is started."
    whole = f'PORT is {app.port}, expected a whole number from 1 to 65535.'
    if not 1 <= app.port <= 65535: refuse(whole, app.connection_dir)
    kind = dict(type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    try:
        family, *_, address = socket.getaddrinfo(app.ip or None, 0, **kind)[0]
        with socket.socket(family, socket.SOCK_STREAM) as s: s.bind(address)
    except (OSError, UnicodeError):
        said = f"BIND is {app.ip!r}, which is no address of this machine: 127.0.0.1 serves this machine only."
        refuse(said, app.connection_dir)
    if not loopback(app.ip): app.log.warning(OPEN.format(app.ip or '0.0.0.0'))

def check_text():
    "Let the kernel find the text that features are profiled on, or end with one sentence."
    name = os.environ.get('MAMBA_INTERP_TEXT', '')
    if not name or name.startswith('hf:'): return
    path = Path(name).expanduser().absolute()
    if not path.exists(): refuse(f"TEXT is {name!r}, and there is no such file or folder: {path}")
    if not os.access(path, os.R_OK): refuse(f"TEXT is {name!r}, which cannot be read: {path}")
    empty = not any(path.iterdir()) if path.is_dir() else not path.stat().st_size
    if empty: refuse(f"TEXT is {name!r}, which is empty: {path}")
    os.environ['MAMBA_INTERP_TEXT'] = str(path)

def most_pages():
    "How many pages may be open at once, or end with one sentence."
    said = os.environ.get('MAMBA_INTERP_PAGES') or '4'
    if re.fullmatch('[1-9][0-9]{0,2}', said): return int(said)
    refuse(f"MAMBA_INTERP_PAGES is {said[:60]!r}, expected a whole number from 1 to 999: pages open at once.")

def host_names(ip):
    "Patterns of the names under which this server may be asked; nobody else can point one of them here."
    names = ['localhost', r'127(\.\d+){3}', r'\[::1\]', re.escape(ip.lower()), re.escape(f'[{ip.lower()}]')]
    everywhere = [re.escape(socket.gethostname().lower()), r'[\d.]+', r'\[[\da-f:.]+\]']
    if ip in ('', '0.0.0.0', '::'): names += everywhere
    return '|'.join(names)

class OneSentence:
    "Say in one sentence what is wrong."
    def write_error(self, status, exc_info=(None, None, None), **_):
        said = getattr(exc_info[1], 'log_message', None) or f'The explorer cannot answer this ({status}).'
        self.set_header('Content-Type', 'text/html; charset=utf-8')
        self.finish(f'<!doctype html><title>Feature explorer</title><p>{html.escape(said)}</p>')

class OtherName(OneSentence, RequestHandler):
    "Any request, websockets too, under a name that is not this server's, as after DNS rebinding."
    def prepare(self): raise HTTPError(403, NAME.format(self.request.host_name).replace('%', '%%'))

class NotServed(OneSentence, RequestHandler):
    "What Voilà offers and the explorer does not need."
    def prepare(self): raise HTTPError(404)

class Page(OneSentence, TornadoVoilaHandler):
    "The app, at an address with the token: with a cookie alone, pages of other ports could start kernels."
    kernel = None

    def get_login_url(self): raise HTTPError(403, ADDRESS)

    async def prepare(self):
        await super().prepare()
        if not self.token_authenticated: raise HTTPError(403, ADDRESS)
        self.set_header('Referrer-Policy', 'same-origin')

    async def get(self, path=None):
        # only the first page finds a kernel started
        self.kernel_manager.kernel_pools_config = dict(default=dict(pool_size=0))
        await super().get(path)
        self.kernel = None

    def on_connection_close(self):
        "A page that is left before it is complete ends its kernel."
        end = self.kernel_manager.shutdown_kernel
        if self.kernel in self.kernel_manager: IOLoop.current().spawn_callback(end, self.kernel)
        super().on_connection_close()

class Left(VoilaShutdownKernelHandler):
    "A page that is left ends its kernel."
    def check_xsrf_cookie(self):
        "Voilà sets no such cookie: the origin, which a browser lets no page choose, stands for it."
        if not self.check_origin(): raise HTTPError(403, 'Another page asked for this.')

class Kernels(AsyncMappingKernelManager):
    "One kernel for each open page, and one that is started with the server for the first page."
    most = Integer(most_pages(), config=True, help='Pages open at once.')

    def __init__(self, **settings):
        check_address(settings['parent'])
        super().__init__(**settings)
        self.begun, self.ending, self.connected = set(), set(), {}

    async def start_kernel(self, *args, **settings):
        many = len(self.begun.union(self.list_kernel_ids()) - self.ending)
        if many >= self.most: raise HTTPError(503, FULL.format(self.most))
        kernel = settings.setdefault('kernel_id', str(uuid4()))
        self.begun.add(kernel)
        page = CallContext.get(CallContext.JUPYTER_HANDLER)
        if page: page.kernel = kernel
        try: return await super().start_kernel(*args, **settings)
        finally: self.begun.discard(kernel)

    async def shutdown_kernel(self, kernel_id, *args, **settings):
        "A kernel that is ending makes room at once, so that a page may be reloaded where no more are allowed."
        self.ending.add(kernel_id)
        try: return await super().shutdown_kernel(kernel_id, *args, **settings)
        finally: self.ending.discard(kernel_id)

    async def cull_kernel_if_idle(self, kernel):
        "End a kernel that nobody is connected to for `cull_idle_timeout`, or thrice that if nobody ever was."
        now = time.monotonic()
        if self._kernel_connections.get(kernel): self.connected[kernel] = now, 1
        since, patience = self.connected.setdefault(kernel, (now, 3))
        if now - since >= patience*self.cull_idle_timeout: await super().cull_kernel_if_idle(kernel)

class Gate(IdentityProvider):
    "Who has the token from the printed address is let in, under a name of this server."
    def get_handlers(self):
        voila = self.parent
        notebook = os.path.relpath(voila.notebook_path, voila.root_dir)
        page = dict(notebook_path=notebook, template_paths=voila.template_paths,
                    config=voila.config, voila_configuration=voila.voila_configuration)
        at = lambda path: url_path_join(voila.server_url, path)
        voila.app.add_handlers(f'(?!({host_names(voila.ip)})$).*', [('.*', OtherName)])
        none = [(at(o), NotServed) for o in ('/voila/query/.*', '/(?!voila/|api/).+')]
        own = [(at('/voila/api/shutdown/(.*)'), Left), *none, (at('/'), Page, page)]
        voila.app.add_handlers('.*', own)
        return []

check_text()

here = Path(__file__).absolute().parent
paths = [str(here/'share'), os.environ.get('JUPYTER_PATH')]
os.environ['JUPYTER_PATH'] = os.pathsep.join(filter(None, paths))

c = get_config()
c.Voila.ip = '127.0.0.1'
c.Voila.open_browser = False
c.Voila.auto_token = True
c.Voila.identity_provider_class = Gate
c.Voila.tornado_settings = dict(websocket_max_message_size=2**26)
c.IdentityProvider.cookie_options = dict(samesite='Strict')
c.VoilaConfiguration.template = 'plain'
c.VoilaConfiguration.show_tracebacks = False
widgets = ['@jupyter-widgets/jupyterlab-manager', '@voila-dashboards/widgets-manager8']
c.VoilaConfiguration.extension_allowlist = widgets
c.VoilaConfiguration.multi_kernel_manager_class = Kernels
c.VoilaConfiguration.preheat_kernel = True
c.KernelManager.transport = 'ipc'
c.MappingKernelManager.cull_idle_timeout = 60
c.MappingKernelManager.cull_interval = 15
c.MappingKernelManager.cull_connected = False
