# Table of contents; README.md tells how to run it, docs/design.md why it is built like this.
from snakemake.utils import min_version

min_version("9.14")


configfile: f"{workflow.basedir}/config/networks.yaml"
configfile: f"{workflow.basedir}/config/recipes.yaml"
configfile: f"{workflow.basedir}/config/image_sets.yaml"
configfile: f"{workflow.basedir}/config/downloads.yaml"
configfile: f"{workflow.basedir}/config/attacks.yaml"
configfile: f"{workflow.basedir}/config/config.yaml"


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
        paths.everything(config),
