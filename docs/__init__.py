"How pages become tests and a site; no part of the package."
