# Table of contents; README.md tells how to run it, docs/design.md why it is built like this.
from snakemake.utils import min_version

min_version("9.14")


configfile: "config/networks.yaml"
configfile: "config/image_sets.yaml"
configfile: "config/downloads.yaml"
configfile: "config/config.yaml"


report: "report/workflow.rst"


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/networks.smk"
include: "rules/attack.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"


rule all:
    default_target: True
    input:
        products,
