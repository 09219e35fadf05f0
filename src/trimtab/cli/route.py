"""stub"""
def route()->None:
    """x"""
