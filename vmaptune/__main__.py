from vmaptune.cli import command

command()
