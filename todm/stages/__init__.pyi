from todm.stages.after_silence import measure_after_silence as measure_after_silence
from todm.stages.benchmarks import bench as bench
from todm.stages.benchmarks import bench_kernels as bench_kernels
from todm.stages.compression import analyse as analyse
from todm.stages.compression import compress as compress
from todm.stages.evaluation import compare as compare
from todm.stages.evaluation import evaluate as evaluate
from todm.stages.exporting import export as export
from todm.stages.extraction import extract_subnet as extract_subnet
from todm.stages.false_accepts import count_false_accepts as count_false_accepts
from todm.stages.importing import import_model as import_model
from todm.stages.preparation import prepare as prepare
from todm.stages.preparation import write_samples as write_samples
from todm.stages.profiling import (
    keep_table as keep_table,
)
from todm.stages.profiling import (
    profile as profile,
)
from todm.stages.profiling import (
    write_pack as write_pack,
)
from todm.stages.reporting import report as report
from todm.stages.searching import search as search
from todm.stages.training import dry_run as dry_run
from todm.stages.training import train as train
from todm.stages.transcription import listen as listen
from todm.stages.transcription import transcribe as transcribe

__all__: list[str]
