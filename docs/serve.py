"Show `_site/` in a browser: `python -m docs.serve PORT ADDRESS`."
import errno, sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

site = Path(__file__).resolve().parent.parent/'_site'

def server(port, address):
    "A server of `_site/`; raises ValueError or OSError, in one sentence, where it cannot serve."
    if not (site/'index.html').is_file(): raise FileNotFoundError('There is no _site/ yet; run: make site')
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16): raise ValueError(f'PORT is {port!r}, expected a whole number from 1 to 65535')
    try: return ThreadingHTTPServer((address, int(port)), partial(SimpleHTTPRequestHandler, directory=str(site)))
    except PermissionError: raise PermissionError(f'Port {port} is for the system; choose another: make serve PORT=8001') from None
    except OSError as e:
        if e.errno != errno.EADDRINUSE: raise OSError(f'{address}:{port} cannot be served ({e.strerror or e}); try: make serve BIND=127.0.0.1 PORT=8001') from None
        raise OSError(f'Port {port} is taken; choose another: make serve PORT={int(port)%65000 + 1}') from None

def main(port='8000', address='127.0.0.1'):
    try: serving = server(port, address)
    except (OSError, ValueError) as e: sys.exit(str(e))
    print(f'The site is on http://{address}:{port}/ until you press Ctrl-C', flush=True)
    try: serving.serve_forever()
    except KeyboardInterrupt: print()

if __name__ == '__main__': main(*sys.argv[1:])
