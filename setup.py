"Installs `mamba_interp`; every fact comes from `settings.ini`."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_namespace_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters='=')
config.read(here/'settings.ini')
fact = config['DEFAULT']
setup(
    name=fact['lib_name'], version=fact['version'], description=fact['description'], keywords=fact['keywords'],
    author=fact['author'], author_email=fact['author_email'], url=fact['git_url'], license='MIT',
    long_description=(here/'README.md').read_text() if (here/'README.md').exists() else '', long_description_content_type='text/markdown',
    packages=find_namespace_packages(include=['mamba_interp', 'mamba_interp.*']), include_package_data=True,
    package_data={'mamba_interp.model': ['*.c'], 'mamba_interp.house': ['*', 'saes/*/*']},
    python_requires='>=' + fact['min_python'],
    install_requires=fact['requirements'].split(),
    extras_require={o: fact[f'{o}_requirements'].split() for o in ('dev', 'cuda', 'explore', 'interop')},
    entry_points={'nbdev': [f"{fact['lib_name']}={fact['lib_name']}._modidx:d"]},
    zip_safe=False,
)
