"Every fault that was found in use, by the kind it is of, and where its right value is asked for."
import ast

import pytest
from docs import pages

# kind -> where its tests are; a test's docstring names the kind
TESTS = dict(
    test_faults_model='''adapter_by_name checkpoint_variants generate_prompt_tap record_all_default ssm_cfg_ignored unequal_prompts
        half_precision_scores mean_over_padding kill_between_files disk_full''',
    test_faults_tasks='''from_prompts_errors prefix_space_slots several_answers uninformative_metric accuracy_with_an_absent_answer
        bootstrap_cover''',
    test_faults_graph='adapter_circuits mamba2_secant_memory nonlinear_metric_secant half_precision_scores mean_over_padding',
    test_faults_circuits='independence_is_vacuous secant_misses_a_planted_circuit detector_is_invisible disk_full',
    test_faults_sae='''tensors_that_are_not_used batchtopk_alone resume_on_another_model default_coefficients bfloat16 outliers
        saved_again errors_that_mislead saes_on_english kill_between_files''',
    test_faults_text='shuffled_stream one_long_text truncated_zst bos_inside_rows text_files older_datasets outliers',
    test_faults_features='profile_of_another_sae neuronpedia bos_inside_rows plain_edges_are_counted bfloat16',
    test_explorer='explorer_reload_leaves_kernels')

# kind -> page and what a cell of it says
PAGES = dict(
    twin_with_embeddings=('sae/house_saes', 'kept_embedding'),
    layer4_writes_the_sign=('studies/ioi', 'minus'))

def docstrings(file):
    "The docstrings of a test file's functions, and its comments' neighbourhood: its text."
    tree = ast.parse(file.read_text())
    return ' '.join(ast.get_docstring(o) or '' for o in ast.walk(tree) if isinstance(o, (ast.FunctionDef, ast.Module)))

@pytest.mark.parametrize('file,kind', [(k, kind) for k,v in TESTS.items() for kind in v.split()])
def test_kind_has_its_tests(file, kind):
    assert kind in docstrings(pages.root/'tests'/f'{file}.py'), f'no test of {file}.py says that it is about {kind}'

@pytest.mark.parametrize('kind', PAGES)
def test_kind_has_its_cell(kind):
    page, words = PAGES[kind]
    code = [c.source for c in pages.read(pages.named(page)).cells if c.cell_type == 'code']
    assert any(words in o and ('assert' in o or 'claim' in o) for o in code), f'no cell of {page} asserts anything of {words!r}'
