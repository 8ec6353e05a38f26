"`WIRING` gives what four tables said before it: the graph's edges, a circuit's connections, what a site rests on, and the map's fixed lines."
from itertools import combinations

import pytest
from mamba_interp.model import SITES, WIRING, WIRING2, computed_from, edge_ends, fixed_wires, onward, receivers

BOTH = (WIRING, WIRING2)
KINDS = ('depth', 'lag', 'receiver', 'gate', 'time')
RECEIVERS = ('to_dt', 'to_B', 'to_C', 'to_value', 'to_skip'), ('to_value', 'to_skip', 'dt', 'B', 'C')
ENDS = {(w, r): 'depth' for w in ('embed', 'block_out') for r in ('read_x', 'read_z', 'resid', 'final_resid')} | {
    ('x', 'conv'): 'lag', ('z', 'gate'): 'gate', ('state', 'y'): 'time', ('read_x', 'dt'): 'receiver'} | {
    ('u', r): 'receiver' for o in RECEIVERS for r in o if r != 'dt'}
INSIDE = dict(read_x=('x', 'read_x', 'u', 'state', 'block_out'), read_z=('z', 'block_out'),
    resid=('x', 'z', 'read_x', 'u', 'state', 'block_out'), conv=('u', 'state', 'block_out'), gate=('block_out',), y=('block_out',)) | {
    k: ('state', 'block_out') for k in ('to_dt', 'to_B', 'to_value', 'dt', 'B')} | {k: ('block_out',) for k in ('to_C', 'C', 'to_skip')}
WIRES = {('resid', 'read_x'), ('resid', 'read_z'), ('read_x', 'x'), ('read_z', 'z'), ('conv', 'u'), ('to_value', 'state'), ('y', 'block_out'),
    ('to_skip', 'block_out'), ('gate', 'block_out'), *((o, k) for n in ('B', 'dt') for o, k in ((n, 'state'), (f'to_{n}', 'state'))),
    *((o, 'y') for o in ('C', 'to_C', 'dt', 'to_dt'))}
FROM = dict(block_out=('gate', 'to_skip', 'y', 'C', 'dt'), y=('state',), state=('to_value', 'B', 'dt'), dt=('to_dt',), B=('to_B',), C=('to_C',),
    gate=('z',), z=('read_z',), **dict.fromkeys(RECEIVERS[0], ('u',)), u=('conv',), conv=('x',), x=('read_x',), read_x=('resid',), read_z=('resid',))
ROW = {o: o for o in ('resid', 'x', 'conv', 'state', 'y', 'z', 'gate', 'block_out')} | dict(read_x='x', read_z='z', u='conv', to_dt='Δ', dt='Δ', to_B='B',
    B='B', to_C='C', C='C', to_value='value', to_skip='skip')
FIXED = {tuple(o.split()) for o in ('resid x', 'resid z', 'Δ state', 'B state', 'value state', 'C y', 'y block_out', 'skip block_out', 'gate block_out')}

def test_edges(): assert edge_ends(WIRING) | edge_ends(WIRING2) == ENDS and tuple(map(receivers, BOTH)) == RECEIVERS

def test_paths_go_on():
    for site, sites in INSIDE.items():
        assert {o for w in BOTH for o in onward(w, site) if any(site in wire for wire in w)} == set(sites), site

def test_connections():
    found = [o for w in BOTH for o in fixed_wires(w)]
    assert {o[:2] for o in found} == WIRES
    assert {o.src for o in found if o.later and o.dst == 'y'} == {'dt', 'to_dt'} and all(o.dst == 'y' for o in found if o.later)

def test_lines_of_the_map():
    rows = {(ROW[o.src], ROW[o.dst]) for w in BOTH for o in fixed_wires(w) if not o.later}
    assert {o for o in rows if o[0] != o[1]} == FIXED

def behind(site, ends, wires):
    if site in ends: return {site}
    return {o for k in wires.get(site, ()) for o in behind(k, ends, wires)}

@pytest.mark.parametrize('which', (0, 1))
@pytest.mark.parametrize('split', (True, False))
def test_what_a_site_rests_on(which, split):
    "For every choice of kinds, at every site at which an edge begins."
    wiring, wires = BOTH[which], FROM | (dict(dt=('read_x',), B=('u',), C=('u',)) if which else {})
    readers = ('read_x', 'read_z') if split else ('resid',)
    for n in range(1, 6):
        for kinds in combinations(KINDS, n):
            ends = {b for (a, b), kind in edge_ends(wiring).items() if kind in kinds and (kind != 'depth' or b in (*readers, 'final_resid'))}
            for src in {a for a, b in edge_ends(wiring)} - {'embed'}:
                assert set(computed_from(wiring, src, ends)) == behind(src, ends, wires), (src, kinds)
