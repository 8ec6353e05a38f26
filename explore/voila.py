"Settings of the explorer's server: who is let in, how many pages are served at once, and when each page's kernel ends."
import html, os, re, socket, time
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
NAME = 'The explorer is asked for under the name {}, which is not one of its own: open the address that `make explore` printed.'
FULL = 'At most {} pages are open at once, as each takes half a gigabyte: close one, then reload this page.'
OPEN = ('With BIND={} everybody who can reach this machine there and learns the address with its token can use '
        'the explorer as you, and nothing is encrypted: leave BIND out to serve this machine only.')

def loopback(ip):
    "Is this an address on which only this machine can ask?"
    try: return ip == 'localhost' or ip_address(ip).is_loopback
    except ValueError: return False

def check_address(app):
    "End with one sentence, or warn in one, before anything is started."
    if not 1 <= app.port <= 65535: raise SystemExit(f'PORT is {app.port}, expected a whole number from 1 to 65535.')
    try:
        family, *_, address = socket.getaddrinfo(app.ip or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as s: s.bind(address)
    except (OSError, UnicodeError):
        raise SystemExit(f"BIND is {app.ip!r}, which is no address of this machine: 127.0.0.1 serves this machine only.") from None
    if not loopback(app.ip): app.log.warning(OPEN.format(app.ip or '0.0.0.0'))

def check_text():
    "Let the kernel find the text that features are profiled on, or end with one sentence."
    name = os.environ.get('MAMBA_INTERP_TEXT', '')
    if not name or name.startswith('hf:'): return
    path = Path(name).expanduser().absolute()
    if not path.exists(): raise SystemExit(f"TEXT is {name!r}, and there is no such file or folder: {path}")
    if not os.access(path, os.R_OK): raise SystemExit(f"TEXT is {name!r}, which cannot be read: {path}")
    empty = not any(path.iterdir()) if path.is_dir() else not path.stat().st_size
    if empty: raise SystemExit(f"TEXT is {name!r}, which is empty: {path}")
    os.environ['MAMBA_INTERP_TEXT'] = str(path)

def host_names(ip):
    "Patterns of the names under which this server may be asked; none of them can be a name that somebody else points at this machine."
    names = ['localhost', r'127(\.\d+){3}', r'\[::1\]', re.escape(ip.lower()), re.escape(f'[{ip.lower()}]')]
    if ip in ('', '0.0.0.0', '::'): names += [re.escape(socket.gethostname().lower()), r'[\d.]+', r'\[[\da-f:.]+\]']
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
    "The app. Its address holds the token: a cookie alone would let the pages of other ports of this machine start kernels."
    kernel = None

    def get_login_url(self): raise HTTPError(403, ADDRESS)

    async def prepare(self):
        await super().prepare()
        if not self.token_authenticated: raise HTTPError(403, ADDRESS)
        self.set_header('Referrer-Policy', 'same-origin')

    async def get(self, path=None):
        self.kernel_manager.kernel_pools_config = dict(default=dict(pool_size=0))   # only the first page finds one started
        await super().get(path)
        self.kernel = None

    def on_connection_close(self):
        "A page that is left before it is complete ends its kernel."
        if self.kernel in self.kernel_manager: IOLoop.current().spawn_callback(self.kernel_manager.shutdown_kernel, self.kernel)
        super().on_connection_close()

class Left(VoilaShutdownKernelHandler):
    "A page that is left ends its kernel."
    def check_xsrf_cookie(self):
        "Voilà sets no such cookie: the request's origin, which a browser does not let a page choose, stands for it."
        if not self.check_origin(): raise HTTPError(403, 'Another page asked for this.')

class Kernels(AsyncMappingKernelManager):
    "One kernel for each open page, and one that is started with the server for the first page."
    most = Integer(int(os.environ.get('MAMBA_INTERP_PAGES') or 4), config=True, help='Pages open at once.')

    def __init__(self, **settings):
        check_address(settings['parent'])
        super().__init__(**settings)
        self.begun, self.connected = set(), {}

    async def start_kernel(self, *args, **settings):
        if len(self.begun.union(self.list_kernel_ids())) >= self.most: raise HTTPError(503, FULL.format(self.most))
        kernel = settings.setdefault('kernel_id', str(uuid4()))
        self.begun.add(kernel)
        page = CallContext.get(CallContext.JUPYTER_HANDLER)
        if page: page.kernel = kernel
        try: return await super().start_kernel(*args, **settings)
        finally: self.begun.discard(kernel)

    async def cull_kernel_if_idle(self, kernel):
        "End a kernel when nobody has been connected to it for `cull_idle_timeout`; thrice that long if nobody ever was."
        now = time.monotonic()
        if self._kernel_connections.get(kernel): self.connected[kernel] = now, 1
        since, patience = self.connected.setdefault(kernel, (now, 3))
        if now - since >= patience*self.cull_idle_timeout: await super().cull_kernel_if_idle(kernel)

class Gate(IdentityProvider):
    "Who has the token from the printed address is let in, under a name of this server."
    def get_handlers(self):
        voila = self.parent
        page = dict(notebook_path=os.path.relpath(voila.notebook_path, voila.root_dir), template_paths=voila.template_paths,
                    config=voila.config, voila_configuration=voila.voila_configuration)
        at = lambda path: url_path_join(voila.server_url, path)
        voila.app.add_handlers(f'(?!({host_names(voila.ip)})$).*', [('.*', OtherName)])
        voila.app.add_handlers('.*', [(at('/voila/api/shutdown/(.*)'), Left), (at('/voila/query/.*'), NotServed), (at('/'), Page, page)])
        return []

check_text()
here = Path(__file__).absolute().parent
os.environ['JUPYTER_PATH'] = os.pathsep.join(filter(None, [str(here/'share'), os.environ.get('JUPYTER_PATH')]))

c = get_config()
c.Voila.ip = '127.0.0.1'
c.Voila.open_browser = False
c.Voila.auto_token = True
c.Voila.identity_provider_class = Gate
c.Voila.tornado_settings = dict(websocket_max_message_size=2**26)
c.IdentityProvider.cookie_options = dict(samesite='Strict')
c.VoilaConfiguration.template = 'plain'
c.VoilaConfiguration.show_tracebacks = False
c.VoilaConfiguration.extension_allowlist = ['@jupyter-widgets/jupyterlab-manager', '@voila-dashboards/widgets-manager8']
c.VoilaConfiguration.multi_kernel_manager_class = Kernels
c.VoilaConfiguration.preheat_kernel = True
c.KernelManager.transport = 'ipc'
c.MappingKernelManager.cull_idle_timeout = 60
c.MappingKernelManager.cull_interval = 15
c.MappingKernelManager.cull_connected = False
