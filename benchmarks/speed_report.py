def report(path):
    pass
