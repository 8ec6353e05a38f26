"What is wrong with text, rows, caches and trainings is said in one sentence, and nothing wrong is taken."
import configparser, gzip, json, os, re, resource, shutil, subprocess, sys, time, warnings
from itertools import islice
from pathlib import Path

import datasets, numpy as np, pyarrow, pyarrow.parquet, pytest, torch, zstandard
from mamba_interp.model import Mamba, Site
from mamba_interp.sae import Cached, Harvest, Rows, cache, harvest
from mamba_interp.tasks import encode
from mamba_interp.training import (Mixture, Recipe, Stage, checked_texts, next_token_loss, pack, pieces,
                                   read_texts, recall_rows, repeat_rows, text_rows, train, train_tokenizer)

root = Path(__file__).resolve().parent.parent
LINE = json.dumps(dict(text='the cat sat on the mat ' * 20)) + '\n'
BAD = (ValueError, TypeError, OSError, KeyError, FloatingPointError)

def said(call, *words):
    "The sentence with which `call` refuses; it is one line, and holds each of `words`."
    with pytest.raises(BAD) as caught: call()
    sentence = str(caught.value)
    assert '\n' not in sentence and 10 < len(sentence) < 600, sentence
    for o in words: assert str(o) in sentence, (o, sentence)
    return sentence

@pytest.fixture(scope='module')
def tokenizer(): return Mamba.load('house').tokenizer

@pytest.fixture(scope='module')
def model(): return Mamba.tiny().requires_grad_(False)

@pytest.fixture
def ids(): return torch.randint(0, 61, (57, 9), generator=torch.Generator().manual_seed(1))

def numbered(n):
    return datasets.Dataset.from_dict(dict(text=[f'This is document {i}. It says that {i} is a number.' for i in range(n)]))

def resumed(make, stop):
    "All rows, the first `stop` of them read, saved and gone on from."
    rows = make()
    first = [o.tolist() for o in islice(rows, stop)]
    again = make()
    again.load_state_dict(json.loads(json.dumps(rows.state_dict())))
    return first + [o.tolist() for o in again]

# Text

def test_truncated_zst(tmp_path):
    "10_truncated_zst: a download that was cut short is never a shorter text."
    lines = ''.join(json.dumps(dict(text=f'{i} ' + hex(hash(str(i))*7**20))) + '\n' for i in range(400)).encode()
    packed = zstandard.compress(lines)
    for cut in (1, 4, 10, len(packed)//2, len(packed) - 5):
        (tmp_path/'a.jsonl.zst').write_bytes(packed[:-cut])
        said(lambda: list(read_texts(tmp_path)), 'a.jsonl.zst', 'cut short')
    (tmp_path/'a.jsonl.zst').write_bytes(packed + zstandard.compress(lines))  # two frames are one text
    assert len(list(read_texts(tmp_path))) == 800
    (tmp_path/'a.jsonl.zst').write_bytes(packed + zstandard.compress(lines)[:-7])
    said(lambda: list(read_texts(tmp_path)), 'cut short')
    (tmp_path/'a.jsonl.zst').write_bytes(lines)
    said(lambda: list(read_texts(tmp_path)), 'no Zstandard file')
    (tmp_path/'a.jsonl.zst').write_bytes(b'')
    said(lambda: list(read_texts(tmp_path)), 'is empty')
    damaged = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(lines))
    damaged[len(damaged)//2] ^= 16
    (tmp_path/'a.jsonl.zst').write_bytes(damaged)
    said(lambda: list(read_texts(tmp_path)), 'a.jsonl.zst')

def test_gz_and_others_that_are_none(tmp_path):
    "10_truncated_zst: so for .gz and .parquet."
    (tmp_path/'a.jsonl.gz').write_bytes(gzip.compress(LINE.encode()*50)[:-9])
    said(lambda: list(read_texts(tmp_path)), 'a.jsonl.gz')
    (tmp_path/'a.jsonl.gz').write_bytes(LINE.encode())
    said(lambda: list(read_texts(tmp_path)), 'a.jsonl.gz')
    (tmp_path/'a.jsonl.gz').unlink()
    pyarrow.parquet.write_table(pyarrow.table(dict(text=['a']*100)), tmp_path/'a.parquet')
    (tmp_path/'a.parquet').write_bytes((tmp_path/'a.parquet').read_bytes()[:-20])
    said(lambda: list(read_texts(tmp_path)), 'a.parquet')

def test_expands_without_bound(tmp_path):
    "10_truncated_zst, a bomb: a small file that is one line of 400 MB is refused in bounded memory."
    for name,head,unit in (('a.jsonl.zst', b'{"text": "', b'word '), ('b.txt.zst', b'', b'a'), ('c.csv.gz', b'text\n"', b'word ')):
        block, file = unit*(2**20//len(unit)), tmp_path/name
        opened = gzip.open(file, 'wb', 1) if name.endswith('gz') else zstandard.open(file, 'wb')
        with opened as f:
            f.write(head)
            for _ in range(140): f.write(block)
        assert file.stat().st_size < 1.5e6
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        said(lambda: list(read_texts(file)), name, 'characters' if name[0] != 'c' else 'c.csv')
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1.2e6  # kB

@pytest.mark.parametrize('name, data, words', [
    ('latin1.txt', ('café ' * 50).encode('latin-1'), ['line 1 of', 'not UTF-8']),
    ('latin1.jsonl', LINE.encode() + json.dumps(dict(text='café'), ensure_ascii=False).encode('latin-1'), ['line 2 of', 'not UTF-8']),
    ('utf16.txt', 'the cat'.encode('utf-16'), ['UTF-16']),
    ('utf16.jsonl', LINE.encode('utf-16-le'), ['line 1 of', 'NUL']),
    ('half_pair.jsonl', (LINE + json.dumps(dict(text='\ud83d the cat'))).encode(), ['line 2 of', 'surrogate']),
    ('null.jsonl', (LINE + '{"text": null}').encode(), ['line 2 of', "'text'"]),
    ('number.jsonl', (LINE + '\n{"text": 5}').encode(), ['line 3 of', "'text'"]),
    ('list.jsonl', (LINE + '[1]').encode(), ['line 2 of']),
    ('body.jsonl', (LINE + '{"body": "a"}').encode(), ['line 2 of', "'body'"]),
    ('cut.jsonl', (LINE + LINE[:50]).encode(), ['line 2 of']),
    ('deep.jsonl', b'['*200_000, ['line 1 of']),
    ('body.csv', b'body\nthe cat\n', ["'body'"]),
    ('short.csv', b'id,text\n1,a\n2\n', ['line 3 of']),
    ('quote.csv', b'id,text\n1,"a" b\n', ['line 2 of']),
    ('a.pdf', b'%PDF', ['.jsonl']),
])
def test_text_files(tmp_path, tokenizer, name, data, words):
    "13_text_files: what is wrong is said with file and line, by `read_texts` and by `Rows`."
    (tmp_path/name).write_bytes(data)
    said(lambda: list(read_texts(tmp_path/name)), name, *words)
    said(lambda: list(Rows(tmp_path/name, tokenizer, 16)), name, *words)

def test_text_files_that_are_read(tmp_path):
    "13_text_files: a mark in front, blank lines, .gz, .csv, .parquet, and line ends of other systems."
    text = json.loads(LINE)['text']
    good = {'bom.jsonl': LINE.encode('utf-8-sig'), 'bom.txt': text.encode('utf-8-sig'), 'blank.jsonl': ('\n' + LINE + '\n \n').encode(),
            'a.jsonl.gz': gzip.compress(LINE.encode()), 'a.csv': f'id,text\r\n1,"{text}"\r\n'.encode(), 'a.txt.gz': gzip.compress(text.encode()),
            'a.tsv': f'id\ttext\n1\t{text}\n'.encode(), 'crlf.jsonl': LINE.replace('\n', '\r\n').encode()}
    for name,data in good.items():
        (tmp_path/name).write_bytes(data)
        assert list(read_texts(tmp_path/name)) == [text], name
    pyarrow.parquet.write_table(pyarrow.table(dict(text=[text, 'b'], id=[1, 2])), tmp_path/'a.parquet')
    assert list(read_texts(tmp_path/'a.parquet')) == [text, 'b']
    pyarrow.parquet.write_table(pyarrow.table(dict(text=[text, None])), tmp_path/'a.parquet')
    said(lambda: list(read_texts(tmp_path/'a.parquet')), 'row 2 of', 'a.parquet')

@pytest.mark.parametrize('path', ['', ' ', 'hf:', 'hf:../..', 'hf:/', 'hf:.', 'hf:~', 'hf:a/b/c', 'hf:a:b:c', None, 5, b'x', [], [''], [3, 4], dict(a=1),
                                  'a'*300, 'two\nlines', '/no/such/file.txt', 'hf:/no/such/folder'])
def test_paths(path, tokenizer):
    "13_text_files: a path that is none, and one that leads elsewhere, is refused at once."
    start = time.monotonic()
    said(lambda: list(read_texts(path)))
    said(lambda: list(Rows(path, tokenizer, 16)))
    assert time.monotonic() - start < 5

# Pieces

def test_one_long_text(tmp_path, tokenizer):
    "08_one_long_text: some rows of a long file need a piece of it, and so does going on from there."
    text = ' '.join(f'The {o} went to the house number {i}.' for i in range(40_000) for o in ('cat', 'dog', 'mouse'))
    (tmp_path/'books.txt').write_text(text)
    read = []
    class Watched:
        def encode(self, text, add_special_tokens=False):
            read.append(len(text))
            return tokenizer.encode(text, add_special_tokens=add_special_tokens)
        bos_token_id, get_vocab = tokenizer.bos_token_id, tokenizer.get_vocab
    make = lambda: Rows(tmp_path/'books.txt', Watched(), 128)
    rows = make()
    first = list(islice(rows, 256))
    assert len(first) == 256 and sum(read) < 400_000 < len(text)
    state, n = json.loads(json.dumps(rows.state_dict())), sum(read)
    again = make()
    again.load_state_dict(state)
    next(iter(again))
    assert sum(read) - n < 200_000
    whole = encode(tokenizer, text[:400_000])
    assert torch.cat([o[1:] for o in first]).tolist() == ([tokenizer.bos_token_id] + whole)[:256*127]
    for stop in (1, 300, 900):
        assert resumed(lambda: islice_rows(make, 1000), stop) == [o.tolist() for o in islice(make(), 1000)]

class islice_rows:
    "`Rows` that end after `n` rows."
    def __init__(self, make, n): self.rows, self.n = make(), n
    def state_dict(self): return self.rows.state_dict()
    def load_state_dict(self, state): self.rows.load_state_dict(state)
    def __iter__(self):
        for row in self.rows:
            yield row
            if self.rows.state_dict()['rows'] >= self.n: return

def test_pieces_have_the_ids_of_the_whole(tokenizer):
    "08_one_long_text: also with runs of blanks, of marks and of other scripts; and a text of one word is refused."
    rng = np.random.default_rng(0)
    parts = np.array(['the ', 'cat', "'s", ' ', '  ', '\n', '\n\n', '.', '...', '7', '1234', 'é', '猫', '。', '\t', ' a', '\u0301', '“', '<|endoftext|>'])
    for seed in range(3):
        text = ''.join(rng.choice(parts, 60_000))
        found = list(pieces(text, tokenizer))
        assert len(found) > 1 and [i for _,o in found for i in encode(tokenizer, o)] == encode(tokenizer, text)
        assert ''.join(o for _,o in found) == text and [a for a,_ in found] == np.cumsum([0] + [len(o) for _,o in found])[:-1].tolist()
    said(lambda: list(pieces('a'*5_000_000, tokenizer, where='document 7')), 'document 7')
    assert pack([text[:150_000]], tokenizer, valid=0)[0].tolist() == [tokenizer.bos_token_id] + encode(tokenizer, text[:150_000])

def test_tokenizer_that_changes_texts(tokenizer):
    "A tokenizer set to cut off or to fill up would leave out text, or put some in."
    from tokenizers import Tokenizer
    for switch in (lambda o: o.enable_truncation(4), lambda o: o.enable_padding()):
        plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        assert len(pack(['the cat sat on the mat']*3, plain, valid=0)[0]) > 15
        switch(plain)
        said(lambda: pack(['the cat sat on the mat']*3, plain), 'on')
        said(lambda: Rows(numbered(9), plain, 16), 'on')

# Positions

def test_shuffled_stream():
    "05_shuffled_stream: a stream that shuffles goes on with the very next row."
    tok, data = Mamba.load('house').tokenizer, numbered(300)
    streams = [lambda: data.to_iterable_dataset().shuffle(seed=0, buffer_size=50), lambda: data.to_iterable_dataset(3).shuffle(seed=1, buffer_size=500),
               lambda: data.to_iterable_dataset(3).shuffle(seed=1, buffer_size=20).map(lambda o: dict(text=o['text'].upper())),
               lambda: datasets.interleave_datasets([data.to_iterable_dataset(), numbered(100).to_iterable_dataset()], seed=3),
               lambda: data.to_iterable_dataset().filter(lambda o: len(o['text']) % 3), lambda: data.to_iterable_dataset().batch(7).map(lambda o: dict(text=' '.join(o['text'])))]
    for stream in streams:
        make = lambda: Rows(stream(), tok, 64)
        whole = [o.tolist() for o in make()]
        for stop in (1, len(whole)//3, len(whole) - 1): assert resumed(make, stop) == whole
    unseeded = Rows(data.to_iterable_dataset().shuffle(buffer_size=100), tok, 64)
    next(iter(unseeded))
    other = Rows(data.to_iterable_dataset().shuffle(buffer_size=100), tok, 64)
    other.load_state_dict(unseeded.state_dict())
    said(lambda: list(other), 'another text')

def test_older_datasets(monkeypatch, tokenizer):
    "20_older_datasets: a version that resumes at a wrong place is refused; every requirement has a lower bound that the pinned version meets."
    for version in ('4.8.4', '5.0.0', '3.0.0.dev0'):
        monkeypatch.setattr(datasets, '__version__', version)
        said(lambda: Rows(numbered(5), tokenizer), version, '5.1')
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(root/'settings.ini')
    pinned = dict(re.findall(r'(?m)^([\w.-]+)==(\S+)$', (root/'constraints.txt').read_text().lower().replace('_', '-')))
    number = lambda o: [int(i) for i in o.split('.')[:2]]
    for o in settings['DEFAULT']['requirements'].split():
        name, bound = re.fullmatch(r'([\w-]+)>=([\d.]+)', o).groups()
        assert number(bound) <= number(pinned[name.lower().replace('_', '-')]), o
    assert 'datasets>=5.1' in settings['DEFAULT']['requirements'].split() and 'pillow' in pinned

def test_resume_on_another_model_or_text(tmp_path, model, ids, tokenizer):
    "06_resume_on_another_model: a position names model and text, and another of either is refused."
    make = lambda m=model, rows=ids, **kw: Harvest(m, Rows(rows), '1.resid', **dict(batch=20, capacity=140) | kw)
    old = make()
    next(old)
    state = json.loads(json.dumps(old.state_dict()))
    said(lambda: make(Mamba.tiny(seed=1)).load_state_dict(state), 'fingerprint')
    said(lambda: make(rows=ids.flip(0)).load_state_dict(state), 'text')
    for kw in (dict(seed=1), dict(batch=10), dict(skip=0), dict(shuffle=False), dict(longest=9.)):
        said(lambda: make(**kw).load_state_dict(state), list(kw)[0])
    same = make(Mamba.tiny(), ids.to(torch.int32).clone())
    same.load_state_dict(state)
    assert torch.equal(next(same)[Site('resid', 1)], next(old)[Site('resid', 1)])
    for i in range(2):
        (tmp_path/f'{i}.jsonl').write_text(''.join(json.dumps(dict(text=f'{"cat" if i else "dog"} {k} went home')) + '\n' for k in range(50)))
    rows = Rows(tmp_path/'0.jsonl', tokenizer, 16)
    next(iter(rows))
    said(lambda: Rows(tmp_path/'1.jsonl', tokenizer, 16).load_state_dict(rows.state_dict()), 'text')
    moved = tmp_path/'elsewhere'
    moved.mkdir()
    shutil.copy(tmp_path/'0.jsonl', moved/'x.jsonl')
    Rows(moved, tokenizer, 16).load_state_dict(rows.state_dict())  # the same text in another place

def test_a_stream_with_another_text(tokenizer):
    "06_resume_on_another_model: of a stream nothing is known, so the text at the position is compared, at the very beginning too."
    one, two = (datasets.Dataset.from_dict(dict(text=[f'{name} {i} went home to sleep in a bed' for i in range(60)])).to_iterable_dataset() for name in ('Ann', 'Bob'))
    for read in (1, 30):
        rows = Rows(one, tokenizer, 16)
        for _ in islice(rows, read): pass
        other = Rows(two, tokenizer, 16)
        other.load_state_dict(rows.state_dict())
        said(lambda: next(iter(other)), 'another text')
    house = Mamba.load('house')
    make = lambda data: Harvest(house, Rows(data, tokenizer, 16), '0.resid', batch=32, capacity=512)
    old, new = make(one), make(two)
    next(old)
    new.load_state_dict(old.state_dict())
    said(lambda: next(new), 'another text')

def test_positions_that_are_damaged(model, ids, tokenizer):
    "06_resume_on_another_model: what is no position is refused, by the name of its field."
    make = lambda: Harvest(model, Rows(ids), '1.resid', batch=20, capacity=140)
    source = make()
    next(source)
    good = source.state_dict()
    for bad in ({}, [], None, 'x', dict(settings={}), {k: v for k,v in good.items() if k != 'held'}, good | dict(batch=-1), good | dict(batch=10**12), good | dict(held=10**9),
                good | dict(epoch='a'), good | dict(rows={}), good | dict(rows=good['rows'] | dict(rows=-5)), good | dict(lengths=[1]), good | dict(left_out=None)):
        said(lambda: make().load_state_dict(bad))
    rows = Rows(numbered(50), tokenizer, 16)
    for _ in islice(rows, 9): pass
    good = rows.state_dict()
    for bad in (dict(place='x'), dict(place=[1]), dict(start=10**9), dict(start=-1), dict(offset=10**9), dict(here='zz'), dict(rows=0)):
        again = Rows(numbered(50), tokenizer, 16)
        said(lambda: (again.load_state_dict(good | bad), list(again)))

# Which tokens

def test_bos_inside_rows(tokenizer):
    "12_bos_inside_rows: the BOS between documents is no activation to learn from."
    house = Mamba.load('house')
    make = lambda **kw: Harvest(house, Rows(numbered(60), tokenizer, 32), '1.resid', **dict(batch=50, capacity=1024, at_once=4) | kw)
    rows = torch.stack(list(Rows(numbered(60), tokenizer, 32)))
    want = harvest(house, rows, '1.resid')[Site('resid', 1)][rows != tokenizer.bos_token_id]
    for kw in ({}, dict(skip='bos'), dict(shuffle=False)):
        source = make(**kw)
        found = torch.cat([o[Site('resid', 1)] for o in source])
        assert len(found) == len(want) == source.tokens
        assert torch.allclose(found.sum(0), want.sum(0), atol=1e-2)
    assert torch.allclose(found, want, atol=1e-3) and source.left_out['bos'] > 0
    assert sum(len(o[Site('resid', 1)]) for o in make(skip=1)) == len(rows)*31
    given = Harvest(house, Rows(rows, bos=tokenizer.bos_token_id), '1.resid', batch=50, capacity=1024, at_once=4, shuffle=False)
    assert torch.allclose(torch.cat([o[Site('resid', 1)] for o in given]), want, atol=1e-3)
    said(lambda: Harvest(house, Rows(rows), '1.resid', batch=50, skip='bos'), 'bos')
    assert not Rows(rows, bos=0).real(torch.tensor([[0, 3]]))[0, 0] and Rows(rows).real(torch.tensor([0, 3])).all()

@pytest.mark.filterwarnings('ignore')
def test_outliers(tokenizer):
    "16_outliers: long activations are left out at every site, are told and counted; a resumed run leaves out the same."
    loud = Mamba.tiny().requires_grad_(False)
    loud.embeddings.weight.data[60] *= 1000
    ids = torch.randint(0, 60, (57, 9), generator=torch.Generator().manual_seed(0))
    ids[::5, 4] = 60
    make = lambda longest=20.: Harvest(loud, Rows(ids), ['embed', '1.B'], batch=20, capacity=140, at_once=3, longest=longest)
    with pytest.warns(UserWarning, match='times as long as the median'): want = list(source := make())
    x = torch.cat([o[Site('embed')] for o in want])
    assert source.left_out['long'] == 12 and len(x) == 57*8 - 12 and x.norm(dim=1).max() < 20*x.norm(dim=1).median()
    assert sum(len(o[Site('embed')]) for o in make(None)) == 57*8
    for stop in (1, 5, len(want) - 1):
        old, new = make(), make()
        first = [next(old) for _ in range(stop)]
        new.load_state_dict(json.loads(json.dumps(old.state_dict())))
        both = first + list(new)
        assert len(both) == len(want) and all(torch.equal(a[s], b[s]) for a,b in zip(both, want) for s in a)
    ordinary = list(Harvest(loud, Rows(ids[1:5]), 'embed', batch=8, capacity=64, longest=1e6))
    assert sum(map(lambda o: len(o[Site('embed')]), ordinary)) == 32

def test_errors_that_mislead(model, ids):
    "19_errors_that_mislead: a ring whose type is too small says so."
    loud = Mamba.tiny().requires_grad_(False)
    loud.embeddings.weight.data *= 1e6
    make = lambda **kw: list(Harvest(loud, Rows(ids), 'embed', batch=20, capacity=140, **kw))
    said(lambda: make(dtype=torch.float16), 'float16 holds', 'embed', 'bfloat16')
    assert make(dtype=torch.bfloat16) and make()
    loud.embeddings.weight.data[3] = float('nan')
    said(make, 'embed is not finite at row')
    said(lambda: make(dtype=torch.float16))

@pytest.mark.parametrize('options', [dict(batch=0), dict(batch=-1), dict(batch=2.5), dict(capacity=0), dict(capacity=10**12), dict(at_once=0), dict(seed=-1), dict(skip=-1), dict(skip=9),
                                     dict(skip='eos'), dict(dtype='float16'), dict(dtype=torch.int8), dict(device='gpu7'), dict(shuffle='no'), dict(longest=0), dict(longest=float('nan'))], ids=str)
def test_harvest_options(model, ids, options):
    said(lambda: next(Harvest(model, Rows(ids), '1.resid', **dict(batch=20, capacity=200) | options)), *[o for o in options if o != 'device'][:1])

@pytest.mark.parametrize('source, options', [([1, 2, 3], {}), (torch.ones(3, 4), {}), (np.zeros((3, 0), int), {}), (np.array(5), {}), (np.arange(99), dict(length=0)), (np.arange(99), dict(length=2.5)),
                                             (np.arange(99), dict(bos=-1)), (np.arange(99), dict(rank=1)), (np.arange(99), dict(world=0)), ('a.txt', {}), ('a.txt', dict(tokenizer='tok'))], ids=str)
def test_rows_options(source, options): said(lambda: list(Rows(source, **options)))

# Caches

def test_cache_of_another(tmp_path, model, ids):
    "06_resume_on_another_model: a cache is gone on with only by the same model, text and settings; a finished one too."
    make = lambda m=model, rows=ids, sites='1.resid', **kw: Harvest(m, Rows(rows), sites, **dict(batch=20, capacity=140) | kw)
    cache(make(), tmp_path/'c', 200, shard=100)
    kept = {o.name: o.read_bytes() for o in (tmp_path/'c').iterdir()}
    said(lambda: cache(make(Mamba.tiny(seed=1)), tmp_path/'c', 400), 'model', Mamba.tiny().config.model_type)
    for kw in (dict(rows=ids.flip(0)), dict(sites='2.resid'), dict(seed=1), dict(batch=10)):
        said(lambda: cache(make(**kw), tmp_path/'c', 400), tmp_path/'c')
        said(lambda: cache(make(**kw), tmp_path/'c', 200), tmp_path/'c')
    assert kept == {o.name: o.read_bytes() for o in (tmp_path/'c').iterdir()}
    cache(make(), tmp_path/'c', 10**4, shard=100), cache(make(), tmp_path/'whole', 10**4, shard=100)
    names = [o.name for o in (tmp_path/'whole').glob('*.safetensors')]
    assert names and all((tmp_path/'c'/o).read_bytes() == (tmp_path/'whole'/o).read_bytes() for o in names)

@pytest.mark.parametrize('options', [dict(batch=0), dict(batch=-1), dict(batch='a'), dict(seed=-1), dict(rank=1), dict(world=0), dict(world=99), dict(corrupt='no'), dict(model=3)], ids=str)
def test_cached_options(tmp_path, model, ids, options):
    "`Cached(batch=0)` was endless."
    cache(Harvest(model, Rows(ids), '1.resid', batch=20, capacity=140), tmp_path/'c', 100)
    said(lambda: list(Cached(tmp_path/'c', **options)))

def test_cache_manifest(tmp_path, model, ids):
    "A manifest has one reader, which names file and field."
    make = lambda: Harvest(model, Rows(ids), '1.resid', batch=20, capacity=140)
    folder = cache(make(), tmp_path/'c', 200, shard=100)
    file = folder/'manifest.json'
    good = json.loads(file.read_text())
    shards = good['shards']
    for bad in ('', 'null', '[]', '{"what"', '['*10**5, {}, dict(what='other'), good | dict(shards=None), good | dict(shards=[]), good | dict(shards=[{}]), good | dict(shards=[shards[0] | dict(file='../x')]),
                good | dict(shards=[shards[0] | dict(tokens=-5)]), good | dict(shards=[shards[0]]*2), good | dict(sites={}), good | dict(sites={'1.resid': '24'}), good | dict(tokens=5), good | dict(state=5)):
        file.write_text(bad if isinstance(bad, str) else json.dumps(bad))
        said(lambda: list(Cached(folder, batch=10)))
        said(lambda: cache(make(), folder, 400))
    file.write_text(json.dumps(good | dict(sites={'1.resid': 25})))
    said(lambda: list(Cached(folder, batch=10)), 'safetensors', '(100, 25)')
    file.write_text(json.dumps(good | dict(state=None)))
    said(lambda: cache(make(), folder, 400), 'state')
    file.write_text(json.dumps(good))
    (folder/shards[0]['file']).unlink()
    said(lambda: cache(make(), folder, 400), shards[0]['file'], 'missing')

# Folders

def full_disk(monkeypatch, free=1000):
    "Pretend that so many bytes are free."
    usage = shutil.disk_usage('/')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=free))

def test_full_disk_is_told_before(tmp_path, monkeypatch, model, ids):
    "A cache and a training say before any work that there is no room."
    full_disk(monkeypatch)
    said(lambda: cache(Harvest(model, Rows(ids), '1.resid', batch=20, capacity=140), tmp_path/'c', 200), tmp_path/'c', 'room')
    steps = []
    said(lambda: train(Mamba.tiny(), lambda step: steps.append(step) or circle(step), Recipe(steps=4), tmp_path/'t', progress=False), tmp_path/'t', 'room')
    assert not steps

def test_folders_that_cannot_be_written(tmp_path, model, ids, tokenizer):
    "A file where a folder should be is told at once, by path."
    (tmp_path/'file').write_text('x')
    for folder in (tmp_path/'file', tmp_path/'file'/'below'):
        said(lambda: train(Mamba.tiny(), circle, Recipe(steps=4), folder, progress=False), folder)
        said(lambda: cache(Harvest(model, Rows(ids), '1.resid', batch=20, capacity=140), folder, 200), folder)
        said(lambda: pack(['a text']*9, tokenizer, folder), folder)

def test_two_writers(tmp_path, model, ids):
    "The second process on a folder is refused, and the folder stays whole."
    code = '''
import sys
from mamba_interp.report import only_writer
with only_writer(sys.argv[1]): print('held', flush=True), sys.stdin.read()
'''
    for name,work in dict(cache=lambda f: cache(Harvest(model, Rows(ids), '1.resid', batch=20, capacity=140), f, 200), train=lambda f: train(Mamba.tiny(), circle, Recipe(steps=2), f, progress=False)).items():
        held = subprocess.Popen([sys.executable, '-c', code, str(tmp_path/name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
        try:
            assert held.stdout.readline() == 'held\n'
            said(lambda: work(tmp_path/name), tmp_path/name, 'another process')
        finally: held.communicate('')
        work(tmp_path/name)

# Packing and tokenizers

@pytest.mark.parametrize('options', [dict(valid=2), dict(valid=-1), dict(valid=float('nan')), dict(seed=-1), dict(seed='a'), dict(tokenizer=None), dict(texts='one text'), dict(texts=[1]), dict(texts=None),
                                     dict(texts=['a', '\ud83d'])], ids=ascii)
def test_pack_options(tokenizer, options):
    said(lambda: pack(**dict(texts=['a text']*9, tokenizer=tokenizer) | options))

def test_pack_folder(tmp_path, tokenizer):
    "A damaged cache of tokens is refused by file; one of another split names both."
    docs = ['hello there my friend']*30
    want = pack(docs, tokenizer, tmp_path/'p', valid=.2)
    assert all(np.array_equal(a, b) for a,b in zip(want, pack([], tokenizer, tmp_path/'p', valid=.2)))
    said(lambda: pack(docs, tokenizer, tmp_path/'p', valid=.3), 'valid 0.2 there, 0.3 here')
    for name,change in {'pack.json': lambda b: b'[]', 'train.npy': lambda b: b[:-1] + bytes([b[-1] ^ 1]), 'valid.npy': lambda b: b[:-2]}.items():
        shutil.copytree(tmp_path/'p', tmp_path/name)
        file = tmp_path/name/name
        file.write_bytes(change(file.read_bytes()))
        said(lambda: pack(docs, tokenizer, tmp_path/name, valid=.2), name)

@pytest.mark.parametrize('options', [dict(texts='a'), dict(texts=[1]), dict(texts=['\ud800']), dict(words='ab'), dict(words=[1]), dict(vocab_size=10), dict(vocab_size=-1), dict(weight=0)], ids=ascii)
def test_tokenizer_options(options):
    said(lambda: train_tokenizer(**dict(texts=['a text'], vocab_size=300) | options))

def test_rows_that_would_never_end():
    "An empty piece filled no row, for ever."
    for call in (lambda: repeat_rows(range(9), (0, 0)), lambda: repeat_rows(range(9), times=(0, 0)), lambda: recall_rows(range(20), (0, 0)), lambda: recall_rows(range(20), asked=-1), lambda: repeat_rows(range(9), 3),
                 lambda: text_rows([[1]]), lambda: Stage(0, 0, 1, dict(a=1)), lambda: Stage(0, 1, 1, dict(a=float('nan'))), lambda: Mixture(dict(a=3), [Stage(0, 1, 1, dict(a=1))])): said(call)

# Training

def circle(step, period=7, length=16):
    rng = torch.Generator().manual_seed(step)
    return (torch.randint(0, period, (8, 1), generator=rng) + torch.arange(length + 1)) % period

@pytest.mark.parametrize('options', [dict(steps=-1), dict(steps=0), dict(steps=2.5), dict(lr=float('nan')), dict(lr=0), dict(lr=-1), dict(warmup=-5), dict(floor=5), dict(floor=-.1), dict(decay=-1), dict(clip=0),
                                     dict(clip=-1), dict(betas=(1., .9)), dict(betas=(.9,)), dict(betas=None), dict(precision='fp8'), dict(precision='float16')], ids=str)
def test_recipe(options): said(lambda: Recipe(**dict(steps=5) | options), *options)

def test_batches_and_evaluation():
    "What `batch` and `evaluate` give is checked by step; tokens that the model has not are refused, as targets too."
    run = lambda batch=circle, **kw: train(Mamba.tiny(), batch, Recipe(steps=2), progress=False, **kw)
    wide = lambda step: torch.cat([circle(step)[:, :-1], torch.full((8, 1), 61)], 1)
    ignored = lambda step: torch.cat([circle(step)[:, :-1], torch.full((8, 1), -100)], 1)
    for batch in (None, lambda s: None, lambda s: circle(s).float(), lambda s: circle(s)[:, :1], wide, ignored, lambda s: (circle(s), torch.zeros(8, 16, dtype=torch.bool)), lambda s: (circle(s), torch.ones(8, 17, dtype=torch.bool))):
        said(lambda: run(batch))
    for kw in (dict(every=0), dict(every=-1), dict(evaluate=3), dict(evaluate=lambda m: 5), dict(evaluate=lambda m: dict(a=torch.zeros(3)))):
        said(lambda: run(**kw))
    assert run(evaluate=lambda m: dict(a=np.float64(3), b=torch.tensor(2.)))[-1] | dict(loss=0) == dict(step=2, loss=0, a=3., b=2.)

@pytest.fixture(scope='module')
def run_folder(tmp_path_factory):
    "A folder with two checkpoints, and the weights that its run ended with."
    folder, model = tmp_path_factory.mktemp('run'), Mamba.tiny(seed=1)
    train(model, circle, Recipe(steps=6, lr=1e-2, warmup=2), folder, every=2, progress=False)
    return folder, model.state_dict()

def go_on(folder, model=None, batch=circle, **kw):
    model = model or Mamba.tiny(seed=1)
    try:
        return train(model, batch, Recipe(**dict(steps=6, lr=1e-2, warmup=2) | kw), folder, every=2, progress=False)
    finally:
        assert not model.training and not any(p.requires_grad or p.grad is not None for p in model.parameters())

def test_checkpoint_of_another(run_folder):
    "06_resume_on_another_model: a training is gone on with only by the same shape, recipe and data."
    folder, _ = run_folder
    said(lambda: go_on(folder, Mamba.tiny(hidden_size=16)), 'width 24 there, 16 here')
    said(lambda: go_on(folder, Mamba.tiny(kind=2)), "'mamba' there, 'mamba2' here")
    said(lambda: go_on(folder, batch=lambda step: circle(step + 1)), 'first batch')
    said(lambda: go_on(folder, batch=lambda step: circle(step + (step > 2))), 'last batch')
    said(lambda: go_on(folder, lr=2e-2), 'lr 0.01 there, 0.02 here')

def _weight(change):
    def change_it(saved):
        saved['model']['layers.0.out_proj.weight'] = change(saved['model']['layers.0.out_proj.weight'])
    return change_it
CHANGES = {'a list': lambda o: [1], 'step 10^12': lambda o: o | dict(step=10**12), 'step -5': lambda o: o | dict(step=-5), 'step 3': lambda o: o | dict(step=3), 'step text': lambda o: o | dict(step='a'),
           'NaN': _weight(lambda o: o*float('nan')), 'another shape': _weight(lambda o: o[:2]), 'a list for a weight': _weight(lambda o: [1]), 'history 5': lambda o: o | dict(history=5), 'history {}': lambda o: o | dict(history=[{}]),
           'no moments': lambda o: o['optimiser'].update(state={}), 'NaN moment': lambda o: o['optimiser']['state'][0]['exp_avg'].fill_(float('nan')) is None, 'weight decay': lambda o: o['optimiser']['param_groups'][0].update(weight_decay=9.),
           'a moment more': lambda o: o['optimiser']['state'].update({99: o['optimiser']['state'][0]})} | {f'no {k}': (lambda k: lambda o: {a: b for a,b in o.items() if a != k})(k) for k in ('recipe', 'history', 'model', 'optimiser', 'step')}

@pytest.mark.parametrize('change', CHANGES)
def test_checkpoint_that_is_wrong(tmp_path, run_folder, change):
    "Whatever a whole file says that cannot be is refused, by file and field, and the model is left as it was."
    saved = torch.load(run_folder[0]/'checkpoint.pt', weights_only=True)
    torch.save(CHANGES[change](saved) or saved, tmp_path/'checkpoint.pt')
    model = Mamba.tiny(seed=1)
    before = {k: v.clone() for k,v in model.state_dict().items()}
    said(lambda: go_on(tmp_path, model), tmp_path/'checkpoint.pt')
    assert all(torch.equal(v, before[k]) for k,v in model.state_dict().items())

@pytest.mark.filterwarnings('ignore:.*is damaged')
def test_checkpoint_that_is_damaged(tmp_path, run_folder):
    "One bit flipped, or a half of a file: the one before is gone on from, to the same weights; without one, that is said."
    for name,damage in dict(bit=lambda b: b[:len(b)//2] + bytes([b[len(b)//2] ^ 1]) + b[len(b)//2 + 1:], half=lambda b: b[:len(b)//2], none=lambda b: b'').items():
        folder = shutil.copytree(run_folder[0], tmp_path/name)
        file = folder/'checkpoint.pt'
        file.write_bytes(damage(file.read_bytes()))
        go_on(folder, model := Mamba.tiny(seed=1))
        assert all(torch.equal(v, run_folder[1][k]) for k,v in model.state_dict().items())
        for o in folder.glob('checkpoint*.pt'): o.write_bytes(damage(o.read_bytes()))
        said(lambda: go_on(folder), 'no whole checkpoint')

def test_disk_that_fills_up(tmp_path, monkeypatch):
    "A checkpoint that cannot be written leaves the one before, and the run goes on from it."
    model, n = Mamba.tiny(seed=1), [0]
    sync = os.fsync
    def fails(fd):
        n[0] += 1
        if n[0] == 2: raise OSError(28, 'No space left on device')
        return sync(fd)
    monkeypatch.setattr(os, 'fsync', fails)
    said(lambda: go_on(tmp_path, model), tmp_path/'checkpoint.pt', 'No space')
    assert sorted(o.name for o in tmp_path.glob('check*')) == ['checkpoint.pt']
    go_on(tmp_path, model)
    alone = Mamba.tiny(seed=1)
    train(alone, circle, Recipe(steps=6, lr=1e-2, warmup=2), every=2, progress=False)
    assert all(torch.equal(v, model.state_dict()[k]) for k,v in alone.state_dict().items())

def test_broken_off_by_an_exception():
    "The model is in evaluation mode and without gradients, whatever ended the run."
    for error in (KeyboardInterrupt, RuntimeError, ValueError):
        model = Mamba.tiny(seed=1)
        def batch(step):
            if step == 2: raise error('stop')
            return circle(step)
        with pytest.raises(error): train(model, batch, Recipe(steps=5), progress=False)
        assert not model.training and not any(p.requires_grad or p.grad is not None for p in model.parameters())
    model = Mamba.tiny(seed=1)
    with pytest.raises(FloatingPointError, match='lower the learning rate'):
        train(model, circle, Recipe(steps=200, lr=1e6, warmup=1, clip=1e9), progress=False)
    assert not model.training

# Of every kind, what was still taken

@pytest.mark.parametrize('name,text,words', [('a.csv', 'id,text\n1,hello, world\n', ('line 2', '3 fields')), ('b.csv', 'text,text\na,b\n', ("2 columns 'text'",)), ('c.tsv', 'text\tid\na\t1\tb\n', ('line 2', '3 fields'))])
def test_a_row_of_another_width_is_no_row(tmp_path, name, text, words):
    "13_text_files: a text with a separator in it is not cut at it, and of two columns of one name none is chosen."
    (tmp_path/name).write_text(text)
    said(lambda: list(read_texts(tmp_path/name)), name, *words)

@pytest.mark.parametrize('column', [None, 3, ['text']])
def test_a_column_is_text(tmp_path, tokenizer, column):
    "reliability, text: a column that is no name."
    (tmp_path/'a.jsonl').write_text(LINE)
    said(lambda: list(read_texts(tmp_path/'a.jsonl', column)), 'column is')
    said(lambda: Rows(tmp_path/'a.jsonl', tokenizer, 16, column=column), 'column is')

def test_ids_and_positions_of_an_array():
    "reliability, cache and Harvest: negative ids, ids that no whole number of 64 bits holds, a position behind the end."
    for ids in (np.arange(40) - 5, np.full(40, 2**63 + 5, dtype=np.uint64)): said(lambda: list(Rows(ids, length=8)), 'holds token id -')
    state = Rows(np.arange(40), length=8).state_dict()
    for rows in (5, 0): Rows(np.arange(40), length=8).load_state_dict(state | dict(rows=rows))
    said(lambda: Rows(np.arange(40), length=8).load_state_dict(state | dict(rows=6)), 'rows of a position of Rows is 6')

def test_nothing_to_learn_from(tmp_path, tokenizer):
    "reliability, text: an iterator that was read before, sources and stages of another kind, names that a history has."
    said(lambda: train_tokenizer(iter(()), vocab_size=300), 'no document')
    said(lambda: pack(iter(()), tokenizer), 'no document')
    said(lambda: text_rows(np.zeros(50)), 'float64')
    said(lambda: repeat_rows(range(1, 40), times=(1, 1)), 'times is (1, 1)')
    for sources, stages in ((None, []), ([1], []), ({}, None), ({}, Stage(0, 1, 1, dict(a=1)))): said(lambda: Mixture(sources, stages), 'expected a')
    batch = lambda step: torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(step))
    for name in ('step', 'loss'): said(lambda: train(Mamba.tiny(), batch, Recipe(2, warmup=1), every=1, evaluate=lambda m: {name: 1.}, progress=False), repr(name))
    said(lambda: train(Mamba.tiny(), batch, Recipe(2, warmup=1), 3, progress=False), 'folder is')

def test_a_number_too_long_in_a_file(tmp_path):
    "reliability, cache: JSON that Python's own reader refuses is told with the file's name."
    (tmp_path/'manifest.json').write_text('{"tokens": ' + '9'*5000 + '}')
    said(lambda: Cached(tmp_path), 'manifest.json')
