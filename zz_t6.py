import time, sys, os
T0=time.time()
if __name__=="__mp_main__": before=set(sys.modules)
from tests.chaos import rounds
if __name__=="__mp_main__":
    new=set(sys.modules)-before
    print("main import", time.time()-T0, len(new), sorted({n.split(".")[0] for n in new})[:40], flush=True)
from tests.chaos.crew import forkserver
def child(t):
    print("start", time.time()-t, "torch" in sys.modules, "daemon.scp" in sys.modules, "tests.chaos.victim" in sys.modules, flush=True)
if __name__=="__main__":
    c=forkserver()
    for i in range(3):
        p=c.Process(target=child,args=(time.time(),)); p.start(); p.join()
