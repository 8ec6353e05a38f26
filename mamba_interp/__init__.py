__version__ = "0.1.0"
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__,
    ['report', 'model', 'tasks', 'training', 'circuits', 'sae', 'lenses', 'features', 'steering', 'studies'],
    dict(model=['Mamba', 'Site', 'ablate', 'chain', 'record', 'replace', 'steer']))
