"""How the attack ended, per source; see rule tabulate_statuses."""

from dag.report import attack_frames, printing
from dag.workflow.startup import start

start(snakemake.log[0])

from dag.report.collect import records
from dag.workflow.files import write_text

frame = attack_frames.statuses(records(snakemake.input.shards, snakemake.params.networks), snakemake.params.paper)
write_text(snakemake.output.csv, frame.to_csv(index=False))
write_text(snakemake.output.markdown, printing.document("How the attacks ended", {"All sources": frame}))
